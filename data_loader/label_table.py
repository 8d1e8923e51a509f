"""Images whose classes are listed in a table: a CSV or TSV file with a row per image."""

import csv
import functools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_loader.files import (
    NAMES,
    SEPARATOR,
    SUBSETS,
    DataFolder,
    Files,
    Found,
    Strings,
    class_name,
    first_few,
)
from utils.errors import UserError

COLUMNS = {  # the names that each may have
    "path": ("path", "file", "filename", "file_name", "image", "image_path"),
    "label": ("label", "labels", "class", "classes"),
    "subset": ("subset", "split"),
    "group": ("group", "lot"),
}
DELIMITERS = ",;\t"
SHOWN = 10  # faults


class Row(NamedTuple):
    """A row of a table: the image's path as the table has it, with /, and where the file is."""

    name: str
    path: str
    labels: tuple[str, ...]
    subset: str
    group: str
    line: int


@dataclass(eq=False)
class LabelTable(DataFolder):
    """A data set whose classes are listed in a table. Its header names the columns path and label,
    and subset and group if there are any. Nothing is read before it is asked for.

    Args:
        folder: where the paths in the table begin
        table: path of the table, from `folder`
    """

    table: str = "labels.csv"

    @property
    def _file(self) -> Path:
        return self.folder / self.table

    @functools.cached_property
    def rows(self) -> list[Row]:
        """All rows. Raises UserError, which names the lines that are wrong."""
        rows, faults = self._read()
        has_subsets = any(row.subset for row in rows)
        for row in rows:
            if has_subsets and not row.subset:
                faults.setdefault(row.line, f"{row.name} has no subset")
            elif not row.labels and not _has_several(rows):
                faults.setdefault(row.line, f"{row.name} has no label")
        if faults:
            lines = [f"line {line}: {fault}" for line, fault in sorted(faults.items())]
            lines[SHOWN:] = [f"and {len(lines) - SHOWN} more"] * (len(lines) > SHOWN)
            raise UserError("\n  ".join([f"{self._file}:", *lines]))
        if not any(os.path.exists(row.path) for row in rows):
            example = f": there is no {rows[0].path}" if rows else ""
            raise UserError(f"{self._file} names no file in data_loader.args.data_dir{example}")
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
            raise UserError(f"data_loader.args.split: {self._file} names the subsets itself")
        if self.split:
            return super().subsets
        return {subset: self.folder for subset in SUBSETS if subset in (named or {"train"})}

    @property
    def is_grouped(self) -> bool:
        return super().is_grouped or any(self._groups.values())

    def group_of(self, name: str) -> str:
        return self._groups.get(name) or super().group_of(name)

    def place(self, subset: str) -> Path:
        """The table. Raises UserError if it has no rows of this subset."""
        if subset not in self.subsets:
            raise UserError(f"{self._file} has no rows of {subset}")
        return self._file

    def find(self, subset: str) -> Found:
        self.place(subset)
        if subset not in self._found:
            self._found[subset] = self._rows_of(subset)
        return self._found[subset]

    def _rows_of(self, subset: str) -> Found:
        rows = [row for row in self.rows if row.subset in ("", subset)]
        places = {labels: n for n, labels in enumerate(dict.fromkeys(row.labels for row in rows))}
        files = Files(
            "" if self.folder == Path() else os.path.join(self.folder, ""),
            Strings(row.name for row in rows),
            list(map(list, places)),
            np.array([places[row.labels] for row in rows], int),
        )
        missing = [f"line {row.line}" for row in self.rows if not os.path.exists(row.path)]
        note = f"{len(missing)} files of {self._file} are not there: {first_few(missing, SHOWN)}"
        return Found(files, [], [note] if missing else [])

    @functools.cached_property
    def _groups(self) -> dict[str, str]:
        return {row.name: row.group for row in self.rows}

    def _read(self) -> tuple[list[Row], dict[int, str]]:
        """The rows of the table, and by line what is wrong with others. Raises UserError."""
        (_, header), *numbered = _cells(self._file) or [(1, [])]
        names = [name.lower() for name in header]
        places = {
            column: names.index(name)
            for column, known in COLUMNS.items()
            for name in known[::-1]
            if name in names
        }
        if missing := [column for column in ("path", "label") if column not in places]:
            raise UserError(
                f"{self._file}, line 1: the header must name the columns path and label, and may "
                f"name subset and group; {' and '.join(missing)} is missing: {','.join(header)}"
            )
        rows: dict[str, Row] = {}
        faults = {}
        for line, cells in numbered:
            if len(cells) != len(names):
                faults[line] = f"{len(cells)} cells, the header has {len(names)}"
                continue
            name, label, subset, group = (
                cells[places[column]] if column in places else "" for column in COLUMNS
            )
            if not os.path.exists(self.folder / name):
                name = name.replace("\\", "/")  # written on Windows
            path, name = str(self.folder / name), name.replace(os.sep, "/")
            labels = sorted({class_name(text.strip()) for text in label.split(SEPARATOR)} - {""})
            row = Row(name, path, tuple(labels), NAMES.get(subset.lower(), ""), group, line)
            if not name:
                faults[line] = "no path"
            elif subset and not row.subset:
                faults[line] = f'the subset "{subset}" should be train, val or test'
            elif (first := rows.setdefault(path, row)) is not row:
                faults[line] = f"{name} is in line {first.line}, too"
        return list(rows.values()), faults


def _has_several(rows: Iterable[Row]) -> bool:
    return any(len(row.labels) > 1 for row in rows)


def _cells(table: Path) -> list[tuple[int, list[str]]]:
    """The rows that are not empty, each with its line. Raises UserError if it cannot be read."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            is_tsv, header = table.suffix.lower() == ".tsv", file.readline()
            file.seek(0)
            delimiter = "\t" if is_tsv else max(DELIMITERS, key=header.count)
            reader = csv.reader(file, delimiter=delimiter)
            rows = ((reader.line_num, [cell.strip() for cell in row]) for row in reader)
            return [(line, cells) for line, cells in rows if any(cells)]
    except OSError as error:
        raise UserError(f"data_loader.args.labels: {table}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f'{table} is not UTF-8; save it as "CSV UTF-8"') from None
    except csv.Error as error:
        raise UserError(f"{table}, line {reader.line_num}: {error}") from None
