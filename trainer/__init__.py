"""The supervised loop, the one pass without gradients, how a run starts.

What only some scripts need they import from its file: a fault in a config should not wait for it.
"""

from trainer.evaluate import Meters, evaluate, progress
from trainer.start import (
    build_loader,
    build_network,
    build_trained_network,
    check_data,
    class_weights,
    load_pretrained,
    start,
    start_test,
)
from trainer.trainer import Trainer

__all__ = [
    "Meters",
    "Trainer",
    "build_loader",
    "build_network",
    "build_trained_network",
    "check_data",
    "class_weights",
    "evaluate",
    "load_pretrained",
    "progress",
    "start",
    "start_test",
]
