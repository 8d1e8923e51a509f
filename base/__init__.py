"""The contracts: what a model, a data loader, a pruner and a trainer of ours must define."""

from base.base_data_loader import BaseDataLoader
from base.base_model import BaseModel
from base.base_pruner import BasePruner
from base.base_trainer import BaseTrainer

__all__ = ["BaseDataLoader", "BaseModel", "BasePruner", "BaseTrainer"]
