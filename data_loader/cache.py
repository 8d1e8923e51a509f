"""Decoded pictures, kept for the epochs to come: in memory, or in a file that later runs find again."""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

VERSION = 2  # of what is read and of how it is written; another makes kept files stale
SHARE = 4  # of the free memory "auto" takes no more than the fourth part
Cache = Literal["ram", "disk", "auto"] | None


class PictureFile(Sequence):
    """Pictures, uint8 (C, H, W), in a file of nothing but their bytes; read where they are needed.

    Args:
        path: the file
        shapes: (channels, height, width) of each picture
    """

    def __init__(self, path: Path, shapes: list[list[int]]):
        self.path, self.shapes = path, shapes
        self.ends = np.cumsum([channels * height * width for channels, height, width in shapes], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Tensor:
        channels, height, width = self.shapes[index]
        end = self.ends[index]
        part = self._bytes[end - channels * height * width : end]
        return torch.from_numpy(part.reshape(height, width, channels)).permute(2, 0, 1)

    @functools.cached_property
    def _bytes(self) -> np.ndarray:
        return np.memmap(self.path, np.uint8, mode="c")  # nothing that is written into a picture reaches the file

    def __getstate__(self) -> dict:
        return {key: value for key, value in vars(self).items() if key != "_bytes"}  # a worker opens it anew


class Keeper:
    """Takes the pictures of one subset as they are decoded, and says what has become of them.

    Args:
        cache: "ram", "disk", None to keep nothing; "auto" begins in memory, and goes on in a file once that gets full
        stem: the file's path without its ending
    """

    def __init__(self, cache: Cache, stem: Path):
        self.cache, self.stem = cache, stem
        self.limit = free_memory() // SHARE if cache == "auto" else None
        self.size = 0
        self.kept: list[Tensor] | None = None if cache is None else []
        self.shapes: list[list[int]] = []
        self.note = ""
        self._file: Any = None
        if cache == "disk":
            self._to_disk()

    def add(self, picture: Tensor) -> None:
        """The next picture, its channels together in memory."""
        self.size += picture.numel()
        self.shapes.append(list(picture.shape))
        if self._file is not None:
            self._write(picture)
        elif self.kept is not None:
            self.kept.append(picture)
            if self.limit is not None and self.size > self.limit:
                self._to_disk()

    def finish(self, about: dict) -> Sequence[Tensor] | None:
        """The pictures, in the order they came; None where they are not kept. `about` is stored beside a file."""
        if self._file is None:
            return self.kept
        path = self.stem.with_suffix(".bin")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        # The index comes last: where it is, the pictures are, too. Another process may write the same at the same time.
        os.replace(self._temporary(".bin"), path)
        self._temporary(".json").write_text(json.dumps(about | {"shapes": self.shapes}), encoding="utf-8")
        os.replace(self._temporary(".json"), self.stem.with_suffix(".json"))
        self.note = f"the decoded pictures are kept in {path} ({self.size / 2**20:,.0f} MB)"
        return PictureFile(path, self.shapes)

    def _to_disk(self) -> None:
        try:
            self.stem.parent.mkdir(exist_ok=True)
            for old in self.stem.parent.glob(f"{self.stem.name.rpartition('-')[0]}-*"):
                old.unlink(missing_ok=True)  # made of other files or settings: stale
            self._file = open(self._temporary(".bin"), "wb")  # noqa: SIM115 (closed by finish)
            for picture in self.kept or []:
                self._write(picture)
        except OSError as error:
            if self.cache == "disk":
                raise
            self._file = None
            self.note = f"the pictures are decoded in each epoch: memory is short, and {error.filename}: {error.strerror}"
        self.kept = None

    def _write(self, picture: Tensor) -> None:
        self._file.write(picture.permute(1, 2, 0).contiguous().numpy())

    def _temporary(self, suffix: str) -> Path:
        return self.stem.with_name(f".{self.stem.name}.{os.getpid()}{suffix}")


def stored(stem: Path) -> tuple[PictureFile, dict] | None:
    """The pictures in the file `stem` names, and what is stored beside them; None where that is not there or not whole."""
    try:
        about = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
        pictures = PictureFile(stem.with_suffix(".bin"), about.pop("shapes"))
        whole = pictures.path.stat().st_size == (pictures.ends[-1] if len(pictures) else 0)
    except (OSError, ValueError, KeyError):
        return None
    return (pictures, about) if whole else None


def digest(files: Sequence[tuple[str, int]], root: Path, *settings: Any) -> str:
    """Of the names, sizes and times of `files`, and of the settings they are read with: another where one has changed."""
    found = hashlib.blake2b(repr((VERSION, settings)).encode(), digest_size=8)
    for path, target in files:
        state = os.stat(path)
        found.update(repr((os.path.relpath(path, root), target, state.st_size, state.st_mtime_ns)).encode())
    return found.hexdigest()


def free_memory() -> int:
    """Bytes that can be had without swapping; 2 GiB where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 2**31
