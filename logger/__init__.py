"""What a run shows and leaves behind: console, info.log, metrics.csv, TensorBoard."""

from logger.logger import setup_logging
from logger.recorder import Recorder
from logger.report import report_test
from logger.visualization import TensorboardWriter

__all__ = ["Recorder", "TensorboardWriter", "report_test", "setup_logging"]
