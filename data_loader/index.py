"""What is known of each file of a data set, kept so that a later start reads only what changed."""

import base64
import contextlib
import functools
import gc
import hashlib
import itertools
import json
import operator
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import PIL

from data_loader.images import Member, Range
from utils.files import atomic_write, write_text

if TYPE_CHECKING:
    from data_loader.files import Files

VERSION = 5  # of how images are read and what is kept of them; a change makes old files stale
DIGEST = 16  # bytes
ENDING = '}}, "checksum": "{}"}}\n'  # of an index: flipped bits would change the training
DECODE = json.JSONDecoder().raw_decode
BLOCK = 10_000  # rows that are read at once
CONTENT = np.dtype(
    [
        ("shape", "<i4", 3),  # channels, height, width
        ("sums", "<i8", (2, 3)),  # of each channel's values, and of their squares
        ("thumbnail", "i1", 144),  # see `data_loader.near_copies`
        ("offset", "<i8"),  # of the decoded image in the file "pack"
        ("checksum", "<u4"),  # CRC-32 of its bytes
    ]
)
TABLE = np.dtype(
    [
        ("size", "i8"),
        ("changed", "i8"),
        ("is_read", "?"),
        ("digest", f"V{DIGEST}"),
        ("pack", "i2"),  # -1: the decoded image is not kept
        ("content", CONTENT),
    ]
)


def without_collection(function: Callable) -> Callable:
    """Decorator of a function that makes many objects: the search for cycles among them, again and
    again, would take longer than the function.
    """

    @functools.wraps(function)
    def wrapped(*args: object, **kwargs: object) -> object:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return function(*args, **kwargs)
        finally:
            if was_enabled:
                gc.enable()

    return wrapped


class Record(NamedTuple):
    """What is known of a file; a row of the index.

    Attributes:
        part: its subset
        label: name of its class
        size: in bytes; -1 for a file that must be looked at again
        changed: time of the last change in ns
        bad: why it cannot be read
        values: the lowest and the highest, if it has more than 8 bits per channel
        range: what these were scaled from
        digest: equal for equal pixels; "" if nothing is known yet
        pack: the file in DATA_DIR.cache with the decoded image
        content: shape, sums of the values, thumbnail, and place in `pack`: CONTENT in base64
    """

    part: str
    label: str
    size: int
    changed: int
    bad: str | None = None
    values: list[int] | list[float] | None = None
    range: Range = None
    digest: str = ""
    pack: str | None = None
    content: str = ""


class Records:
    """What is known of each of some files, by columns: as many objects would fill the memory.

    Attributes:
        table: of what is known of most files (N,), see `Record` and TABLE; "is_read" is False for
            those of which nothing is known
        bad: place of a file -> why it cannot be read
        deep: place of a file with more than 8 bits -> its lowest and highest value, and what these
            were scaled from
        packs: the files that "pack" counts
        moved: names of files that the index has in another subset, and its rows of files that were
            in this one and are elsewhere now
    """

    def __init__(self, stamps: np.ndarray):
        """`stamps` (N, 2): size and time of each file; -1 for one that cannot be opened."""
        self.table = np.zeros(len(stamps), TABLE)
        self.table["size"], self.table["changed"] = stamps.T
        self.table["pack"] = -1
        self.bad: dict[int, str] = {}
        self.deep: dict[int, tuple[list[int] | list[float], Range]] = {}
        self.packs: list[str] = []
        self.moved: tuple[set[str], dict[str, str]] = set(), {}

    def __len__(self) -> int:
        return len(self.table)

    @property
    def shapes(self) -> np.ndarray:
        """Channels, height and width of each image, int64 (N, 3); zeros if it was not read."""
        return self.table["content"]["shape"].astype(np.int64)

    def known(self, pixel_range: Range) -> np.ndarray:
        """Whether each file need not be read (N,), where values are scaled from `pixel_range`."""
        known = self.table["is_read"].copy()
        known[list(self.bad)] = True
        for place, (_, scaled_from) in self.deep.items():
            known[place] = pixel_range in ("data", scaled_from)
        return known

    def good(self) -> np.ndarray:
        """Whether each file can be read (N,), as far as is known."""
        good = np.ones(len(self), bool)
        good[list(self.bad)] = False
        return good

    def take(self, chosen: np.ndarray) -> "Records":
        """Those of the files at these places, in this order."""
        if np.array_equal(chosen, np.arange(len(self))):
            return self  # a copy may be large
        taken = Records.__new__(Records)
        taken.table, taken.packs = self.table[chosen], self.packs
        odd = self.bad or self.deep
        places = {place: new for new, place in enumerate(chosen.tolist())} if odd else {}
        taken.bad = {places[old]: reason for old, reason in self.bad.items() if old in places}
        taken.deep = {places[old]: deep for old, deep in self.deep.items() if old in places}
        return taken

    def keep(self, places: list[int], pack: str, offsets: list[int], checksums: list[int]) -> None:
        """Note where decoded images are kept."""
        self.table["pack"][places] = self._number(pack)
        content = self.table["content"]
        content["offset"][places], content["checksum"][places] = offsets, checksums

    def _number(self, pack: str | None) -> int:
        if pack is None:
            return -1
        if pack not in self.packs:
            self.packs.append(pack)
        return self.packs.index(pack)

    def fill(self, places: list[int], rows: list[list]) -> None:
        """Take over what the index says of files that have not changed, each `Record` as a list."""
        if not rows:
            return
        _, _, sizes, times, reasons, values, ranges, digests, packs, contents = zip(
            *rows, strict=True
        )
        table, numbers = self.table, {pack: self._number(pack) for pack in {*packs}}
        where, is_same = np.array(places), np.array(sizes) >= 0
        is_same &= (table["size"][where] == sizes) & (table["changed"][where] == times)
        for row in np.flatnonzero(
            is_same & [bool(a or b) for a, b in zip(reasons, values, strict=True)]
        ):
            if reasons[row]:
                self.bad[places[row]] = reasons[row]
            if values[row]:
                self.deep[places[row]] = values[row], ranges[row]
        is_same &= [bool(digest) for digest in digests]
        where, chosen = where[is_same], np.flatnonzero(is_same).tolist()
        digest, content = ("".join([part[n] for n in chosen]) for part in (digests, contents))
        table["is_read"][where] = True
        table["digest"][where] = np.frombuffer(bytes.fromhex(digest), f"V{DIGEST}")
        table["pack"][where] = [numbers[packs[n]] for n in chosen]
        table["content"][where] = np.frombuffer(base64.b64decode(content), CONTENT)

    def set(
        self,
        place: int,
        size: int,
        reason: str | None = None,
        known: dict[str, object] | None = None,
    ) -> None:
        """Note what was found in a file: why it cannot be read, or what it contains.

        Args:
            place: of the file
            size: of the file; -1 if it must be looked at again
            reason: why it cannot be read
            known: "values" and "range" as in `Record`, digest, shape, sums and thumbnail, if it was
                read
        """
        known = known or {}
        self.bad.pop(place, None)
        self.deep.pop(place, None)
        if reason:
            self.bad[place] = reason
        if known.get("values"):
            self.deep[place] = known["values"], known.get("range")
        row = self.table[place]
        row["size"], row["pack"], row["is_read"] = size, -1, "digest" in known
        if "digest" in known:
            row["digest"], content = known["digest"], row["content"]
            content["shape"], content["thumbnail"] = known["shape"], known["thumbnail"]
            content["sums"][:, : known["shape"][0]] = known["sums"]

    def row(self, place: int, part: str, label: str) -> Record:
        """All about a file."""
        row = self.table[place]
        values, scaled_from = self.deep.get(place, (None, None))
        record = [part, label, int(row["size"]), int(row["changed"]), self.bad.get(place)]
        record += [values, scaled_from]
        if row["is_read"]:
            pack = None if row["pack"] < 0 else self.packs[row["pack"]]
            content = base64.b64encode(row["content"].tobytes()).decode()
            record += [row["digest"].tobytes().hex(), pack, content]
        return Record(*record)


class Index:
    """The file index.json in DATA_DIR.cache. It holds nothing that cannot be made again.

    It has a line for each file, so that it need not be in memory as a whole. Several runs may use
    it at once: each replaces it.

    Args:
        folder: of the data set
        settings: of how images are read
    """

    def __init__(self, folder: Path, *settings: int | None):
        self.folder = cache_folder(folder)
        self.path = self.folder / "index.json"
        self.made_by = [VERSION, PIL.__version__, *settings]
        content = json.dumps({"made_by": self.made_by, "columns": Record._fields})
        self._header = f'{content[:-1]}, "files": {{\n'
        self._added = self.folder / f"added-{zlib.crc32(content.encode()):08x}.txt"

    @without_collection
    def look(self, files: "Files", part: str) -> tuple[Records, bool]:
        """What is known of a subset's files, nothing of those that are new or have changed; and
        whether the index says this and no more of the subset.
        """
        stamps = itertools.chain.from_iterable(map(_stamp, files.paths()))
        records = Records(np.fromiter(stamps, np.int64, 2 * len(files)).reshape(-1, 2))
        places = {name: place for place, name in enumerate(files.each_name())}
        labels = list(files.each_label())
        come, gone = records.moved
        same = found = 0
        for is_own in (True, False):
            if found == len(files):
                break  # else some may have been in another subset
            stored = self._stored(part, is_own)
            while block := list(itertools.islice(stored, BLOCK)):
                known = [name for name, _ in block if name in places]
                rows = json.loads(f"[{','.join([row for name, row in block if name in places])}]")
                numbers = [places[name] for name in known]
                records.fill(numbers, rows)
                found += len(known)
                if is_own:
                    others = [(name, text) for name, text in block if name not in places]
                    there = {n: text for n, text in others if os.path.exists(files.path(n))}
                    gone |= there
                    same += sum(
                        map(operator.eq, [r[1] for r in rows], [labels[n] for n in numbers])
                    )
                    same -= len(others) - len(there)  # files that were removed
                else:
                    come.update(known)
        return records, same == len(files) and not come and not self._added.exists()

    def add(self, name: str, record: Record) -> None:
        """Note what was found in a file, for the next `look`; several processes may do so at once.

        A crash may cost the line, as that cannot be written atomically.
        """
        line = f"{json.dumps(name)}: {json.dumps(record)}"
        with contextlib.suppress(OSError), open(self._added, "ab", buffering=0) as file:
            file.write(f"{zlib.crc32(line.encode()):08x} {line}\n".encode())

    def update(self, part: str, files: "Files", records: Records) -> list[str]:
        """Keep what is known of all files of a subset; returns a sentence if that fails."""
        known = records.known("data")
        rows = zip(files.each_name(), files.each_label(), strict=True)
        try:
            self.folder.mkdir(exist_ok=True)
            with atomic_write(self.path) as file:
                checksum, line = hashlib.blake2b(digest_size=DIGEST), self._header
                for place, (name, label) in enumerate(rows):
                    if known[place]:
                        row = json.dumps(records.row(place, part, label))
                        line = _next(file, checksum, line, name, row)
                come, gone = records.moved
                stored = (pair for pair in self._stored(part, False) if pair[0] not in come)
                for name, text in itertools.chain(stored, gone.items()):
                    line = _next(file, checksum, line, name, text)
                line = line.rstrip(",\n") + "\n"
                checksum.update(line.encode())
                file.write(line.encode())
                file.write(ENDING.format(checksum.hexdigest()).encode())
            self._added.unlink(missing_ok=True)
        except OSError as error:
            reason = f"{self.folder} cannot be written: {error.strerror}"
            return [f"every start reads every file, as {reason}"]
        return []

    def _stored(self, part: str, is_own: bool) -> Iterator[tuple[str, str]]:
        """The name and the row of each file of a subset, or of all others; none if the index is
        damaged, or of other settings.
        """
        own = f'": [{json.dumps(part)},'.encode()
        for line in itertools.chain(self._lines(), self._added_lines()):
            if (own in line) == is_own:
                text = line.decode()
                name, _, row = text.partition('": ')
                if "\\" in name:  # it has characters that are escaped
                    name, end = DECODE(text)
                    name, row = f'"{name}', text[end + 2 :]
                yield name[1:], row.rstrip(",\n")

    def _lines(self) -> Iterator[bytes]:
        with contextlib.suppress(OSError), open(self.path, "rb") as file:
            if _is_whole(file) and file.readline() == self._header.encode():
                yield from (line for line in file if line.startswith(b'"'))

    def _added_lines(self) -> Iterator[bytes]:
        with contextlib.suppress(OSError), open(self._added, "rb") as file:
            for checksum, _, line in (line.rstrip(b"\n").partition(b" ") for line in file):
                if checksum == f"{zlib.crc32(line):08x}".encode():
                    yield line


def _next(file: BinaryIO, checksum: "hashlib.blake2b", line: str, name: str, row: str) -> str:
    """Write the line before a row; returns the row's."""
    checksum.update(line.encode())
    file.write(line.encode())
    return f"{json.dumps(name)}: {row},\n"


def _is_whole(file: BinaryIO) -> bool:
    """Whether the index has the checksum with which it ends. It is afterwards at its beginning."""
    ending = len(ENDING.format("0" * 2 * DIGEST))
    left = os.fstat(file.fileno()).st_size - ending
    checksum = hashlib.blake2b(digest_size=DIGEST)
    while left > 0 and (block := file.read(min(left, 2**20))):
        checksum.update(block)
        left -= len(block)
    is_whole = left == 0 and file.read() == ENDING.format(checksum.hexdigest()).encode()
    file.seek(0)
    return is_whole


def _stamp(path: str) -> tuple[int, int]:
    """Size and time of a file; -1 if it cannot be opened."""
    try:
        stat = os.stat(path.shard if isinstance(path, Member) else path)
    except OSError:
        return -1, -1
    return path.size if isinstance(path, Member) else stat.st_size, stat.st_mtime_ns


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
