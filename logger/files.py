"""Tables for files and for the screen, and file names that every system accepts."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path

from utils.files import atomic_write, numbered, safe_name

FORMULA = tuple("=+-@\t\r＝＋－＠")  # how a text begins that a spreadsheet would compute


def write_csv(path: Path, header: list[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a table; it begins with the byte order mark by which Excel recognizes UTF-8.

    A text that a spreadsheet would compute gets an apostrophe in front, see `inert`.
    """
    with atomic_write(path, "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows(map(inert, row) for row in [header, *rows])


def inert(cell: object) -> object:
    """The cell of a table; 'text in place of =text, +text, -text or @text, which a spreadsheet
    would compute: a file's name may be somebody else's. Negative numbers stay.
    """
    if not isinstance(cell, str) or not cell.startswith(FORMULA):
        return cell
    is_number = re.fullmatch(r"-(\d+\.?\d*(e[-+]?\d+)?|inf)", cell)
    return cell if is_number else f"'{cell}"


def flat(config: dict, prefix: str = "") -> dict[str, object]:
    """{"optimizer": {"args": {"lr": 0.1}}} -> {"optimizer.args.lr": 0.1}."""
    values: dict[str, object] = {}
    for key, value in config.items():
        if key not in ("$schema", "versions"):
            name = f"{prefix}{key}"
            values |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return values


def aligned(rows: list[list[str]]) -> list[str]:
    """A table as lines for the screen: the first column left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]


def threads_in_words(count: int) -> str:
    """A number of threads, where 0 means all."""
    return "all threads" if count == 0 else "1 thread" if count == 1 else f"{count} threads"


def file_names(stems: Iterable[str], suffix: str) -> list[str]:
    """A file name for each stem: all different, and without what Windows forbids."""
    names: dict[str, str] = {}  # in lower case: to Windows and macOS a.jpg and A.jpg are the same
    for stem in stems:
        candidates = (path.name for path in numbered(Path(f"{safe_name(stem) or '_'}{suffix}")))
        name = next(name for name in candidates if name.lower() not in names)
        names[name.lower()] = name
    return list(names.values())
