"""The supervised loop, the one pass without gradients, and how a run starts."""

from trainer.evaluate import Meters, evaluate, progress
from trainer.start import load_model, load_pretrained, start, start_test
from trainer.trainer import Trainer

__all__ = ["Meters", "Trainer", "evaluate", "load_model", "load_pretrained", "progress", "start", "start_test"]
