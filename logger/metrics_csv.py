import csv
import os
from pathlib import Path


class MetricsFile:
    """metrics.csv: a row per epoch, a column for everything that was ever logged.

    Args:
        path: the file
        enabled: False keeps nothing
    """

    def __init__(self, path: Path, enabled: bool = True):
        self.path, self.enabled = Path(path), enabled
        self.rows: list[dict[str, str]] = []

    def resume(self, epoch: int) -> None:
        """Take up the file as it was after `epoch`; later rows are dropped."""
        if self.path.exists():
            with open(self.path, newline="", encoding="utf-8") as file:
                self.rows = [
                    row for row in csv.DictReader(file) if (row.get("epoch") or "").isdigit() and int(row["epoch"]) <= epoch
                ]

    def add(self, row: dict) -> None:
        """Append a row. A column that is new is added to the earlier rows too, empty."""
        if not self.enabled:
            return
        self.rows.append({name: repr(value) if isinstance(value, float) else str(value) for name, value in row.items()})
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(temporary, self.path)
