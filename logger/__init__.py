"""What a run shows and records: console, info.log, metrics.csv, TensorBoard; parts of reports."""

import importlib

PLACES = {
    "Recorder": "logger.recorder",
    "TensorboardWriter": "logger.visualization",
    "setup_logging": "logger.logger",
}
__all__ = ["Recorder", "TensorboardWriter", "setup_logging"]


def __getattr__(name: str) -> object:
    # only what is asked for is imported: the page of all runs needs no torch
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(PLACES[name]), name)
