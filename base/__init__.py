"""The contracts: what a model, a data loader, a task and a trainer must define."""

import importlib

from base.base_data_loader import BaseDataLoader
from base.base_model import BaseModel
from base.base_task import BaseTask
from base.base_trainer import BaseTrainer
from base.samples import BaseDataset
from utils.files import ROOT

__all__ = ["BaseDataLoader", "BaseDataset", "BaseModel", "BaseTask", "BaseTrainer"]


def __getattr__(name: str) -> type:
    """The contract of a verb, from its own folder: they all were here before November 2026."""
    for file in ROOT.glob(f"*/base_{name.removeprefix('Base').lower()}.py"):
        return getattr(importlib.import_module(f"{file.parent.name}.{file.stem}"), name)
    raise AttributeError(f"base has no {name}")
