"""Images whose classes stand in a table: a CSV or TSV file with a row per image."""

import csv
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_loader.files import NAMES, SUBSETS, DataFolder, class_name
from utils.errors import UserError

COLUMNS = {  # the names that each may have
    "path": ("path", "file", "filename", "file_name", "image", "image_path"),
    "label": ("label", "labels", "class", "classes"),
    "subset": ("subset", "split"),
    "group": ("group", "lot"),
}
DELIMITERS = ",;\t"
SEPARATOR = "|"  # of the classes of one image
SHOWN = 10  # faults


class Row(NamedTuple):
    """A row of the table: its line, the image's path, that as written, with /, and its classes; ""
    for a subset or a group if there is no such column.
    """

    line: int
    path: str
    name: str
    labels: list[str]
    subset: str
    group: str


class LabelTable(DataFolder):
    """A data set whose classes stand in a table. Its header names the columns path and label, and
    subset and group if there are any. Nothing is read before it is asked for.

    Args:
        folder: where the paths in the table begin
        table: path of the table, from `folder`
        split, classes, seed, stratify, group: as for DataFolder
    """

    def __init__(
        self,
        folder: Path,
        table: str,
        split: Sequence[float] | None,
        classes: list[str] | None,
        seed: int,
        stratify: bool = False,
        group: str | None = None,
    ):
        super().__init__(folder, split, classes, seed, stratify, group)
        self.table = folder / table

    @functools.cached_property
    def rows(self) -> list[Row]:
        """All rows. Raises UserError, which names the lines that are wrong."""
        rows, faults = _read(self.table, self.folder)
        seen: dict[str, int] = {}
        has_subsets = any(row.subset for row in rows)
        for row in rows:
            if (line := seen.setdefault(row.path, row.line)) != row.line:
                faults[row.line] = f"{row.name} is in line {line}, too"
            elif has_subsets and not row.subset:
                faults[row.line] = f"{row.name} has no subset"
            elif not row.labels and not _has_several(rows):
                faults[row.line] = f"{row.name} has no label"
        if faults:
            lines = [f"line {line}: {fault}" for line, fault in sorted(faults.items())]
            lines[SHOWN:] = [f"and {len(lines) - SHOWN} more"] * (len(lines) > SHOWN)
            raise UserError("\n  ".join([f"{self.table}:", *lines]))
        if not any(os.path.exists(row.path) for row in rows):
            example = f": there is no {rows[0].path}" if rows else ""
            raise UserError(f"{self.table} names no file in data_loader.args.data_dir{example}")
        return rows

    @functools.cached_property
    def is_multi_label(self) -> bool:
        """Whether an image may have several classes, or none."""
        return _has_several(self.rows)

    @functools.cached_property
    def subsets(self) -> dict[str, Path]:
        """As for DataFolder. Raises UserError if table and `split` both say what is what."""
        named = {row.subset for row in self.rows} - {""}
        if named and self.split:
            raise UserError(f"data_loader.args.split: {self.table} names the subsets itself")
        if self.split:
            return super().subsets
        return {subset: self.folder for subset in SUBSETS if subset in (named or {"train"})}

    @property
    def is_grouped(self) -> bool:
        return super().is_grouped or any(row.group for row in self.rows)

    def group_of(self, name: str) -> str:
        return self._groups.get(name) or super().group_of(name)

    def place(self, subset: str) -> Path:
        """The table. Raises UserError if it has no rows of this subset."""
        if subset not in self.subsets:
            raise UserError(f"{self.table} has no rows of {subset}")
        return self.table

    def find(self, subset: str) -> tuple[dict[str, list[str]], list[str]]:
        self.place(subset)
        images: dict[str, list[str]] = {}
        for row in self._rows_of(subset):
            for label in row.labels:
                images.setdefault(label, []).append(row.path)
        missing = [f"line {row.line}" for row in self.rows if not os.path.exists(row.path)]
        shown = ", ".join([*missing[:SHOWN], *["..."] * (len(missing) > SHOWN)])
        notes = [f"{len(missing)} files of {self.table} are not there: {shown}"] if missing else []
        return images, notes

    def members(self, subset: str) -> list[tuple[str, str, list[str]]]:
        return [(row.path, row.name, row.labels) for row in self._rows_of(subset)]

    def _rows_of(self, subset: str) -> list[Row]:
        return [row for row in self.rows if row.subset in ("", subset)]

    @functools.cached_property
    def _groups(self) -> dict[str, str]:
        return {row.name: row.group for row in self.rows}


def _has_several(rows: Sequence[Row]) -> bool:
    return any(len(row.labels) > 1 for row in rows)


def _read(table: Path, folder: Path) -> tuple[list[Row], dict[int, str]]:
    """The rows of a table, and what is wrong by line. Raises UserError for a table of no use."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            delimiter = (
                "\t" if table.suffix.lower() == ".tsv" else max(DELIMITERS, key=header.count)
            )
            file.seek(0)
            cells = csv.reader(file, delimiter=delimiter)
            names = [name.strip().lower() for name in next(cells, [])]
            places = {
                column: names.index(name)
                for column, known in COLUMNS.items()
                for name in known[::-1]
                if name in names
            }
            if missing := [column for column in ("path", "label") if column not in places]:
                raise UserError(
                    f"{table}, line 1: the header must name the columns path and label, and may "
                    f"name subset and group; {' and '.join(missing)} is missing: {header.strip()}"
                )
            numbered = [(cells.line_num, row) for row in cells if any(map(str.strip, row))]
    except OSError as error:
        raise UserError(f"data_loader.args.labels: {table}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f'{table} is not UTF-8; save it as "CSV UTF-8"') from None
    except csv.Error as error:
        raise UserError(f"{table}, line {cells.line_num}: {error}") from None
    rows, faults = [], {}
    for line, row in numbered:
        values = {column: row[at].strip() for column, at in places.items() if at < len(row)}
        subset = values.get("subset", "").lower()
        if len(row) != len(names):
            faults[line] = f"{len(row)} cells, the header has {len(names)}"
        elif not values["path"]:
            faults[line] = "no path"
        elif subset and subset not in NAMES:
            faults[line] = f'the subset "{values["subset"]}" should be train, val or test'
        else:
            name = values["path"]
            if not os.path.exists(folder / name):
                name = name.replace("\\", "/")  # written on Windows
            labels = {class_name(label.strip()) for label in values["label"].split(SEPARATOR)}
            rest = sorted(labels - {""}), NAMES.get(subset, ""), values.get("group", "")
            rows.append(Row(line, str(folder / name), name.replace(os.sep, "/"), *rest))
    return rows, faults
