"""What is known of each file of a data set, kept so that a later start reads only what changed."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import PIL

from data_loader.images import Range
from utils.files import write_text

VERSION = 4  # of how images are read and what is kept of them; a change makes old files stale
CHECKSUM = ', "checksum": "'


class Record(NamedTuple):
    """What is known of a file; a row of the index.

    Attributes:
        size: in bytes; -1 for a file that must be looked at again
        changed: time of the last change in ns
        label: name of its class
        part: its subset
        bad: why it cannot be read
        values: the lowest and the highest, if it has more than 8 bits per channel
        range: what these were scaled from
        digest: equal for equal pixels; "" if nothing is known yet
        shape: (channels, height, width) as read
        sums: of each channel's values, and of their squares
        thumbnail: for comparing it with others, see `data_loader.near_copies`
    """

    size: int
    changed: int
    label: str
    part: str
    bad: str | None = None
    values: list[int] | list[float] | None = None
    range: Range = None
    digest: str = ""
    shape: list[int] | None = None
    sums: list[list[int]] | None = None
    thumbnail: str = ""

    def is_complete(self, pixel_range: Range) -> bool:
        """Whether the file need not be read, where values are scaled from `pixel_range`."""
        if self.values:
            return pixel_range in ("data", self.range)
        return bool(self.bad or self.digest)


class Index:
    """The file index.json in DATA_DIR.cache. It holds nothing that cannot be made again.

    Several runs may use it at once: each replaces it as a whole.

    Args:
        folder: of the data set
        settings: of how images are read
    """

    def __init__(self, folder: Path, *settings: int | None):
        self.folder = cache_folder(folder)
        self.made_by = [VERSION, PIL.__version__, *settings]
        self.records = self._stored()

    def look(self, path: str, name: str, label: str, part: str) -> Record:
        """The record of a file; one without content if the file has changed, or is new."""
        try:
            stat = os.stat(path)
            stamp = stat.st_size, stat.st_mtime_ns
        except OSError:
            stamp = -1, -1
        known = self.records.get(name)
        if known is None or stamp[0] < 0 or known[:2] != stamp:
            return Record(*stamp, label, part)
        return known._replace(label=label, part=part)

    def update(self, part: str, records: dict[str, Record]) -> list[str]:
        """Keep all records of a subset, by name of the file; returns a sentence if that fails."""
        before = {name: record for name, record in self.records.items() if record.part == part}
        if records == before:
            return []
        others = {name: known for name, known in self._stored().items() if known.part != part}
        content = {"made_by": self.made_by, "columns": Record._fields, "files": others | records}
        try:
            self.folder.mkdir(exist_ok=True)
            text = json.dumps(content)[:-1]
            write_text(self.folder / "index.json", f"{text}{_checksum(text)}")
        except OSError as error:
            reason = f"{self.folder} cannot be written: {error.strerror}"
            return [f"every start reads every file, as {reason}"]
        return []

    def _stored(self) -> dict[str, Record]:
        # damaged files raise all of these
        errors = OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError
        with contextlib.suppress(*errors):
            whole = (self.folder / "index.json").read_text(encoding="utf-8")
            text, _, _ = whole.rpartition(CHECKSUM)
            content = json.loads(whole)
            if whole == f"{text}{_checksum(text)}" and content["made_by"] == self.made_by:
                return {name: Record(*row) for name, row in content["files"].items()}
        return {}


def _checksum(text: str) -> str:
    """The end of an index that begins with `text`: flipped bits would change the training."""
    return f'{CHECKSUM}{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"}}'


def remember_parts(
    folder: Path, settings: list, share: Callable[[dict[str, int]], dict[str, int]]
) -> dict[str, int]:
    """The part of a split that each file is in, by name; those given before are remembered in the
    file parts.json in DATA_DIR.cache.

    Unlike the index it cannot be made again once files were added; where it cannot be written, the
    parts follow from the files that are there.

    Args:
        folder: of the data set
        settings: of the split; each has its own parts
        share: makes the parts of all files from those that were given before
    """
    path, key = cache_folder(folder) / "parts.json", repr(settings)
    stored: dict[str, dict[str, int]] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):
        stored = dict(json.loads(path.read_text(encoding="utf-8")))
    known = stored.get(key, {})
    parts = share(known)
    if not parts.items() <= known.items():
        stored[key] = known | parts  # also those of files that are not there at the moment
        with contextlib.suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            write_text(path, json.dumps(stored))
    return parts


def cache_folder(folder: Path) -> Path:
    """The folder DATA_DIR.cache, beside the data set's."""
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}.cache")
