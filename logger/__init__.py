"""What a run shows and records: console, info.log, metrics.csv, TensorBoard; parts of reports."""

from logger.logger import setup_logging
from logger.recorder import Recorder
from logger.visualization import TensorboardWriter

__all__ = ["Recorder", "TensorboardWriter", "setup_logging"]
