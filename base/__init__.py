"""The contracts: what a model, a data loader and a trainer must define."""

from base.base_data_loader import BaseDataLoader
from base.base_model import BaseModel
from base.base_trainer import BaseTrainer
from base.samples import BaseDataset

__all__ = ["BaseDataLoader", "BaseDataset", "BaseModel", "BaseTrainer"]
