"""The supervised loop, the one pass without gradients, and how a run starts."""

from trainer.evaluate import Meters, evaluate, progress
from trainer.start import build_loader, build_network, build_trained_network, load_pretrained, start, start_test
from trainer.trainer import Trainer

__all__ = [
    "Meters",
    "Trainer",
    "build_loader",
    "build_network",
    "build_trained_network",
    "evaluate",
    "load_pretrained",
    "progress",
    "start",
    "start_test",
]
