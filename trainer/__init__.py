"""The supervised loop, the one pass without gradients, how a run starts, and what a test makes of it."""

from trainer.evaluate import Meters, evaluate, progress
from trainer.heatmap import explain, heat_maps
from trainer.inspection import inspect
from trainer.judge import Judge
from trainer.predict import predict_images
from trainer.predictions import Predictions
from trainer.profile import profile
from trainer.prune_trainer import PruneTrainer
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
    "Judge",
    "Meters",
    "Predictions",
    "PruneTrainer",
    "Trainer",
    "build_loader",
    "build_network",
    "build_trained_network",
    "check_data",
    "class_weights",
    "evaluate",
    "explain",
    "heat_maps",
    "inspect",
    "load_pretrained",
    "predict_images",
    "profile",
    "progress",
    "start",
    "start_test",
]
