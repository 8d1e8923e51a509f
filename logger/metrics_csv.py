"""Writes metrics.csv."""

import csv
from pathlib import Path

from utils.files import atomic_write


class MetricsFile:
    """metrics.csv: a row per epoch, a column for everything that was ever logged.

    Args:
        path: the file
        enabled: False writes nothing
    """

    def __init__(self, path: Path, enabled: bool = True):
        self.path, self.enabled = path, enabled
        self.rows: list[dict[str, object]] = []

    def resume(self, epoch: int) -> None:
        """Continue the file as it was after `epoch`; later rows are dropped."""
        if self.path.exists():
            with open(self.path, newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if (row.get("epoch") or "").isdigit()]
            self.rows = [row for row in rows if int(row["epoch"]) <= epoch]

    def add(self, row: dict[str, int | float]) -> None:
        """Append a row. A new column is added to the earlier rows too, empty."""
        if not self.enabled:
            return
        self.rows.append(row)
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with atomic_write(self.path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
