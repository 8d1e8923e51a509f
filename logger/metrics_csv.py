"""Writes metrics.csv."""

import contextlib
import csv
import io
import logging
from pathlib import Path

from utils.files import numbered, write_text

logger = logging.getLogger("trainer")
ENCODINGS = "utf-8-sig", "cp932", "latin-1"  # of a file that somebody's spreadsheet has saved


class MetricsFile:
    """metrics.csv: a row per epoch, a column for everything that was ever logged.

    The checkpoints hold the rows; the file is written from them. One that somebody has changed is
    kept under another name.

    Args:
        path: the file
        enabled: False writes nothing
    """

    def __init__(self, path: Path, enabled: bool = True):
        self.path, self.enabled = path, enabled
        self._written: bytes | None = None

    def read(self) -> list[dict[str, float]]:
        """The rows, also of a file that a spreadsheet has saved."""
        content = self.path.read_bytes() if self.path.exists() else b""
        text = _decoded(content)
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        lines = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows = [{n: _number(cell) for n, cell in line.items() if n and cell} for line in lines]
        return [row for row in rows if isinstance(row.get("epoch"), int)]

    def write(self, history: list[dict[str, float]]) -> None:
        """Write all rows. A new column is empty in earlier rows."""
        if not self.enabled:
            return
        text = _render(history)
        try:
            if self.path.exists() and self._is_changed(history):
                aside = self.path.with_name("metrics.changed.csv")
                aside = next(free for free in numbered(aside) if not free.exists())
                self.path.rename(aside)
                logger.warning(f"{self.path} was changed: it is {aside.name} now")
            write_text(self.path, text)
        except PermissionError as error:  # a spreadsheet on Windows has it open
            logger.warning(f"{self.path} was not written ({error.strerror}); checkpoints hold it")
        else:
            self._written = text.encode()

    def _is_changed(self, history: list[dict[str, float]]) -> bool:
        """Whether somebody else has written the file."""
        content = self.path.read_bytes()
        if self._written is not None:
            return content != self._written
        rows = self.read()
        known = {row["epoch"]: row for row in rows}
        differ = any(known.get(row["epoch"], row) != row for row in history)
        return differ or _render(rows).encode() != content


def _render(rows: list[dict[str, float]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _decoded(content: bytes) -> str:
    for encoding in ENCODINGS:  # the last one decodes anything
        with contextlib.suppress(UnicodeDecodeError):
            return content.decode(encoding)
    return ""


def _number(cell: str) -> float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(cell.replace(",", "."))  # some countries' decimals
    return cell
