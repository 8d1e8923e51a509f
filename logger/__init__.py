"""What a run shows and leaves behind: console, info.log, metrics.csv, TensorBoard."""

from logger.charts import as_picture, overlay
from logger.files import (
    aligned,
    file_names,
    probability_columns,
    rounded,
    test_folder,
    threads_in_words,
    write_csv,
    write_text,
)
from logger.logger import setup_logging
from logger.page import shown
from logger.prune_report import pruning_table, recommended, report_pruning
from logger.recorder import Recorder
from logger.report import report_test
from logger.visualization import TensorboardWriter

__all__ = [
    "Recorder",
    "TensorboardWriter",
    "aligned",
    "as_picture",
    "file_names",
    "overlay",
    "probability_columns",
    "pruning_table",
    "recommended",
    "report_pruning",
    "report_test",
    "rounded",
    "setup_logging",
    "shown",
    "test_folder",
    "threads_in_words",
    "write_csv",
    "write_text",
]
