"""The contracts: what a model, a data loader, a trainer, a pruner and an exporter of ours must define."""

from base.base_data_loader import BaseDataLoader
from base.base_exporter import BaseExporter
from base.base_model import BaseModel
from base.base_pruner import BasePruner
from base.base_trainer import BaseTrainer

__all__ = ["BaseDataLoader", "BaseExporter", "BaseModel", "BasePruner", "BaseTrainer"]
