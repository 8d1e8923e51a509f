import json
import logging
import logging.config
import os
import sys
from pathlib import Path

COLORS = {logging.WARNING: "\033[33m", logging.ERROR: "\033[31m"}


class ConsoleFormatter(logging.Formatter):
    """The bare message; warnings yellow and errors red on a terminal, unless NO_COLOR is set (no-color.org)."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        color = COLORS.get(record.levelno)
        colored = color and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        return f"{color}{text}\033[0m" if colored else text


def setup_logging(log_dir: Path | None = None, verbosity: int = 2) -> None:
    """Log to the console, and to info.log in `log_dir` if one is given, as logger_config.json says.

    The console shows warnings only (verbosity 0), a line per epoch too (1), or all (2); the file is the same for each.
    """
    config = json.loads(Path(__file__).with_name("logger_config.json").read_text(encoding="utf-8"))
    config["handlers"]["console"]["level"] = ("WARNING", "INFO", "DEBUG")[verbosity]
    if log_dir is None:
        config["handlers"].pop("info_file")
        config["root"]["handlers"].remove("info_file")
    else:
        Path(log_dir).mkdir(parents=True, exist_ok=True)
        config["handlers"]["info_file"]["filename"] = str(Path(log_dir) / config["handlers"]["info_file"]["filename"])
    logging.config.dictConfig(config)
