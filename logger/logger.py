"""Sets up Python's logging: the console and info.log."""

import json
import logging
import logging.config
import logging.handlers
import os
import sys
from pathlib import Path

COLORS = {logging.WARNING: "\033[33m", logging.ERROR: "\033[31m"}


class ConsoleFormatter(logging.Formatter):
    """The bare message; on a terminal warnings are yellow and errors red, unless NO_COLOR is set
    (no-color.org)."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        color = COLORS.get(record.levelno)
        colored = color and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        return f"{color}{text}\033[0m" if colored else text


class _Lasting(logging.Handler):
    """A run continues if its output is closed (`| head -1`), or if the disk is full."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


class Console(_Lasting, logging.StreamHandler):
    """The screen."""


class LogFile(_Lasting, logging.handlers.RotatingFileHandler):
    """info.log."""


def setup_logging(log_dir: Path | None = None, verbosity: int = 2) -> None:
    """Log to the console and, if `log_dir` is given, to info.log there; see logger_config.json.

    The console shows warnings (verbosity 0), also a line per epoch (1), or everything (2); the file
    is the same for each verbosity. Raises OSError if the file cannot be written.
    """
    config = json.loads(Path(__file__).with_name("logger_config.json").read_text(encoding="utf-8"))
    handlers = config["handlers"]
    handlers["console"]["level"] = ("WARNING", "INFO", "DEBUG")[verbosity]
    if log_dir is None:
        del handlers["info_file"]
        config["root"]["handlers"].remove("info_file")
    else:
        log_dir.mkdir(parents=True, exist_ok=True)
        handlers["info_file"]["filename"] = str(log_dir / handlers["info_file"]["filename"])
    try:
        logging.config.dictConfig(config)
    except ValueError as error:  # "unable to configure handler"
        raise error.__cause__ or error from None
