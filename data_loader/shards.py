"""Images in tar files, as the webdataset library writes them, for sets that outgrow a folder.

python -m data_loader.shards FOLDER DEST [--size MB]     write the images of FOLDER into such files
"""

import argparse
import contextlib
import functools
import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_loader.files import (
    NAMES,
    SEPARATOR,
    SUBSETS,
    DataFolder,
    File,
    Files,
    Found,
    Strings,
    class_name,
    first_few,
)
from data_loader.image_folder import ImageFolderDataLoader
from data_loader.images import Member, image_suffixes
from utils.errors import UserError
from utils.files import atomic_write, printable, write_text
from utils.screen import run_command

LABELS = ("cls", "label", "json")  # members that may name the class
KEYS = ("label", "class", "cls", "labels")  # of a .json member
SHARD = re.compile(r"(?i)([a-z]+)[-_.]?\d*\.tar")


class Entry(NamedTuple):
    """An image of a shard: name, labels as text ("crack|dent"), and where its bytes are."""

    name: str
    label: str
    offset: int
    size: int


class ShardFiles(Files):
    """Images in tar files.

    Args:
        shards: the tar files
        places: number of the shard, offset and size of each (N, 3)
    """

    def __init__(self, *columns: object, shards: list[Path], places: np.ndarray):
        super().__init__(*columns)
        self.shards, self.places = shards, places

    def paths(self) -> Iterator[Member]:
        return map(self.path_at, self.rows.tolist())

    def path_at(self, row: int) -> Member:
        shard, offset, size = self.places[row].tolist()
        return Member(self.shards[shard], self.names[row], offset, size)


class ShardFolder(DataFolder):
    """A folder of shards: train-000000.tar, train-000001.tar, ... val-000000.tar. Beside each is
    kept what it contains, in a file of the same name with .index.
    """

    @functools.cached_property
    def shards(self) -> dict[str, list[Path]]:
        """The shards of each subset; "" for all, where `split` divides them."""
        shards: dict[str, list[Path]] = {}
        for path in sorted(self.folder.glob("*.tar")):
            found = SHARD.fullmatch(path.name)
            subset = NAMES.get(found[1].lower(), "") if found else ""
            shards.setdefault("" if self.split else subset, []).append(path)
        if not shards:
            packed = [path.name for path in self.folder.glob("*.tar.*") if path.suffix != ".index"]
            hint = (
                f"; {packed[0]} is compressed, so no image could be found in it" if packed else ""
            )
            raise UserError(f"data_loader.args.data_dir: there are no *.tar in {self.folder}{hint}")
        return shards

    @functools.cached_property
    def subsets(self) -> dict[str, Path]:
        if self.split:
            return super().subsets
        return {subset: self.folder for subset in SUBSETS if subset in self.shards}

    def place(self, subset: str) -> Path:
        if subset in self.subsets:
            return self.folder
        hint = '; if its shards are to be divided, set "split": [0.8, 0.1, 0.1]'
        raise UserError(
            f"data_loader.args.data_dir: there is no {self.folder / f'{subset}-000000.tar'}"
            f"{'' if self.subsets else hint}"
        )

    def find(self, subset: str) -> Found:
        self.place(subset)
        key = "" if self.split else subset
        if key not in self._found:
            self._found[key] = self._read(self.shards[key], "" if self.split else subset)
        return self._found[key]

    def _read(self, shards: list[Path], subset: str) -> Found:
        start, notes, rows = f"{subset}/" if subset else "", [], []
        if subset and (others := self.shards.get("")):
            names = first_few([path.name for path in others])
            notes.append(f"{len(others)} shards of {self.folder} are of no subset: {names}")
        for number, shard in enumerate(shards):
            entries, others = _entries(shard)
            rows += [(number, entry) for entry in entries]
            if others:
                notes.append(f"{shard}: {others} members are no images, or have no class")
        # the order of an image folder
        rows.sort(key=lambda row: (row[1].label, *row[1].name.rpartition("/")[::2]))
        names = [f"{start}{entry.name}" for _, entry in rows]
        if len(set(names)) != len(names):
            twice = next(
                a for a, b in zip(sorted(names), sorted(names)[1:], strict=False) if a == b
            )
            raise UserError(f"{self.folder}: its shards contain {printable(twice)} twice")
        numbers = {label: n for n, label in enumerate(dict.fromkeys(e.label for _, e in rows))}
        files = ShardFiles(
            "",
            Strings(names),
            [sorted(map(class_name, label.split(SEPARATOR))) for label in numbers],
            np.array([numbers[entry.label] for _, entry in rows], int),
            shards=shards,
            places=np.array([(n, e.offset, e.size) for n, e in rows], np.int64).reshape(-1, 3),
        )
        return Found(files, [], notes)

    @property
    def is_multi_label(self) -> bool:
        return any(len(labels) > 1 for labels in self.find("train").files.combinations)


class ShardDataLoader(ImageFolderDataLoader):
    """Images in tar files: `data_dir/train-000000.tar`, `train-000001.tar`, ... `val-000000.tar`.

    As the webdataset library writes them: members of equal names belong together, "a.png" and
    "a.cls" with the class; without that the class is the folder, "NG/a.png". The batches are those
    of an image folder with the same names. `python -m data_loader.shards FOLDER DEST` writes them.

    Args:
        data_dir: folder that contains the shards; those of another name than train, val and test
            (or valid, validation, training, testing) need `split`
    """

    folder_type = ShardFolder


def _entries(shard: Path) -> tuple[list[Entry], int]:
    """The images in a shard, and how many other members there are. Raises UserError."""
    stat, kept = shard.stat(), shard.with_name(f"{shard.name}.index")
    made_by = [1, stat.st_size, stat.st_mtime_ns]
    damages = OSError, ValueError, LookupError, TypeError, RecursionError
    with contextlib.suppress(*damages):  # it is made again
        content = json.loads(kept.read_text(encoding="utf-8"))
        entries = [Entry(*row) for row in content["images"]]
        if content["made_by"] == made_by and all(_fits(entry, stat.st_size) for entry in entries):
            return entries, int(content["others"])
    try:
        images, others = _scan(shard)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{shard} is damaged, or not a tar file: {error}") from error
    with contextlib.suppress(OSError):  # the next start scans it again
        write_text(kept, json.dumps({"made_by": made_by, "others": others, "images": images}))
    return images, others


def _fits(entry: Entry, size: int) -> bool:
    """Whether this can be in a shard of so many bytes: others may have written its index."""
    has_types = [type(part) for part in entry] == [str, str, int, int]
    return has_types and 0 <= entry.offset <= entry.offset + entry.size <= size and entry.name != ""


def _scan(shard: Path) -> tuple[list[Entry], int]:
    suffixes, images, labels, others = image_suffixes(), {}, {}, 0
    with tarfile.open(shard, "r:") as file:
        for member in file:
            if not member.isfile():
                continue
            folder, slash, base = member.name.removeprefix("./").rpartition("/")
            stem, _, suffix = base.partition(".")  # a key ends at the first dot
            key = f"{folder}{slash}{stem}"
            if f".{suffix.rpartition('.')[2].lower()}" in suffixes and key not in images:
                images[key] = suffix, member.offset_data, member.size
            elif suffix.lower() in LABELS:
                text = file.extractfile(member).read(2**20).decode("utf-8", "replace").strip()
                label = _label_in(text) if suffix.lower() == "json" else text
                labels.setdefault(key, label) if label else None
            else:
                others += 1
    entries = []
    for key, (suffix, offset, size) in images.items():
        label = labels.get(key) or key.partition("/")[0] * ("/" in key)
        name = f"{_decoded(key)}.{suffix}"
        if label:
            entries.append(Entry(name, label, offset, size))
    return entries, others + len(images) - len(entries)


def _label_in(text: str) -> str:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    found = [content[key] for key in KEYS if isinstance(content, dict) and key in content]
    value = found[0] if found else ""
    return SEPARATOR.join(map(str, value)) if isinstance(value, list) else str(value)


def _encoded(name: str) -> str:
    """A name as a key of webdataset: without a dot in its last part, of which % is the sign."""
    folder, slash, base = name.replace("%", "%25").rpartition("/")
    return f"{folder}{slash}{base.replace('.', '%2E')}"


def _decoded(key: str) -> str:
    return key.replace("%2E", ".").replace("%25", "%")


def write_shards(folder: Path, destination: Path, size: int) -> Iterator[Path]:
    """Write the images of a folder, as `ImageFolderDataLoader` finds them, into shards of at most
    `size` bytes (but one image at least); yields each.

    Raises UserError if the folder is no data set, or the destination holds shards already.
    """
    data = DataFolder(folder, None, None, seed=0)
    subsets = [subset for subset in SUBSETS if subset in data.subsets]
    parts = [(subset, data.find(subset).files) for subset in subsets]
    if not parts:  # the classes' folders; a loader may divide them
        whole = DataFolder(folder, (1.0, 0.0, 0.0), None, seed=0)
        parts = [("all", whole.find("train").files)]
    destination.mkdir(parents=True, exist_ok=True)
    if any(destination.glob("*.tar")):
        raise UserError(f"{destination} contains shards already; name a new folder")
    for subset, files in parts:
        places = iter(files)
        waiting, number = next(places, None), 0
        while waiting is not None:
            path, used = destination / f"{subset}-{number:06}.tar", 0
            with atomic_write(path) as file, tarfile.open(fileobj=file, mode="w") as shard:
                while waiting is not None and (used == 0 or used < size):
                    used += _add(shard, waiting, subset)
                    waiting = next(places, None)
            number += 1
            yield path


def _add(shard: tarfile.TarFile, file: File, subset: str) -> int:
    """Add an image and its class; returns the bytes."""
    stem, _, suffix = file.name.removeprefix(f"{subset}/").rpartition(".")
    key, used = _encoded(stem), 0
    for end, content in ((suffix, Path(file.path).read_bytes()), ("cls", file.label.encode())):
        member = tarfile.TarInfo(f"{key}.{end}")
        member.size = len(content)
        shard.addfile(member, io.BytesIO(content))
        used += 512 + len(content)
    return used


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_loader.shards", description=__doc__)
    parser.add_argument("folder", type=Path, help="images, as for ImageFolderDataLoader")
    parser.add_argument("destination", type=Path, help="a folder to write the shards into")
    parser.add_argument("--size", type=int, default=500, metavar="MB", help="of a shard (500)")

    def convert(arguments: argparse.Namespace) -> None:
        size = arguments.size * 2**20
        for path in write_shards(arguments.folder, arguments.destination, size):
            print(f"written: {path}")

    return run_command(parser, argv, convert)


if __name__ == "__main__":
    sys.exit(main())
