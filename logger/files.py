"""What a test leaves beside its report: tables and pictures, under names that every system takes."""

import csv
import io
import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from utils.checkpoint import place_of


def write_text(path: Path, text: str, encoding: str = "utf-8") -> None:
    """Write `text` so that `path` holds the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding=encoding, newline="")
    os.replace(temporary, path)


def write_csv(path: Path, header: list[str], rows: Iterable[Iterable[Any]]) -> None:
    """A table; with the mark at its start by which Excel knows UTF-8."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, file.getvalue(), "utf-8-sig")


def aligned(rows: list[list[str]]) -> list[str]:
    """A table for the screen: the first column on the left, numbers on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]).rstrip() for r in rows]


def threads_in_words(count: int) -> str:
    return "all threads" if count == 0 else "1 thread" if count == 1 else f"{count} threads"


def test_folder(tested: Path) -> Path:
    """Where tests of a checkpoint leave what they found: test/ in its place; for an exported file a folder of its own."""
    return place_of(tested) / "test" / ("" if tested.suffix in (".pth", ".pt") else tested.name)


def probability_columns(classes: list[str]) -> list[str]:
    return [f"p({name})" for name in classes]


def rounded(probabilities: Iterable[float]) -> list[str]:
    """Probabilities for a table, short and with all the digits float32 has."""
    return [f"{p:.7g}" for p in probabilities]


def file_names(stems: Iterable[str], suffix: str) -> list[str]:
    """A file name for each stem, no two alike, without what Windows forbids."""
    taken: set[str] = set()
    names = []
    for stem in stems:
        # a name may have 255 bytes; a Japanese character has three
        safe = re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", stem).encode()[:200].decode(errors="ignore").strip(" .") or "_"
        for number in itertools.count(1):
            name = f"{safe}{'' if number == 1 else f'-{number}'}{suffix}"
            if name.lower() not in taken:  # to Windows and macOS a.jpg and A.jpg are one file
                break
        taken.add(name.lower())
        names.append(name)
    return names


def write_pictures(folder: Path, pictures: dict[str, Any]) -> Path:
    """Write PIL pictures, name.jpg -> picture, into `folder`, or into folder-2, ... where others are there already.

    Nothing is overwritten; a folder that holds the very same is used again. Returns the folder.
    """
    contents = {}
    for name, picture in pictures.items():
        file = io.BytesIO()
        picture.save(file, "jpeg", quality=95)
        contents[name] = file.getvalue()
    for number in itertools.count(1):
        place = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        if not place.exists():
            break
        if place.is_dir() and {p.name: p.read_bytes() for p in place.iterdir() if p.is_file()} == contents:
            return place
    place.mkdir(parents=True)
    for name, content in contents.items():
        (place / name).write_bytes(content)
    return place
