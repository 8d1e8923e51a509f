"""The images of a folder: decoded once, in threads, and kept for later epochs.

They are kept in memory, or in a file that later runs use, too.
"""

import collections
import contextlib
import functools
import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data_loader.files import File
from data_loader.images import BadImage
from utils.engine.launch import cores
from utils.errors import UserError
from utils.files import atomic_write, printable, write_text

VERSION = 2  # of how images are read and stored; a change makes old cache files stale
SHARE = 4  # "auto" takes at most a quarter of the free memory
Cache = Literal["ram", "disk", "auto"] | None
Reader = functools.partial[Tensor]  # of read_image


@dataclass
class Contents:
    """The readable images of one folder, and what is wrong with the other files.

    Attributes:
        files: the files
        digests: one per image, equal for equal pixels
        counts: how often each of the 256 values occurs in each channel (C, 256)
        images: the decoded images, uint8 (C, H, W), if they are kept
        read: reads a file, for images that are not kept
        bad: a line per file that cannot be read
        ignored: files whose names are not those of images
        notes: what the user should know besides
    """

    files: list[File]
    digests: list[str]
    counts: np.ndarray
    images: Sequence[Tensor] | None
    read: Reader
    bad: list[str]
    ignored: list[str]
    notes: list[str]

    @functools.cached_property
    def paths(self) -> list[str]:
        """The files' paths, to be shown."""
        return [printable(file.path) for file in self.files]

    @functools.cached_property
    def targets(self) -> list[int]:
        """The files' class numbers."""
        return [file.target for file in self.files]

    def image(self, index: int) -> Tensor:
        """An image, uint8 (C, H, W)."""
        return self.read(self.files[index].path) if self.images is None else self.images[index]

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Of each channel, over all pixels scaled to 0..1; std is 1 for a constant channel."""
        if not self.files:
            raise UserError('there are no training images for normalize "data"')
        values, shares = np.arange(256) / 255, self.counts / self.counts.sum(axis=1, keepdims=True)
        mean = shares @ values
        std = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1))
        return mean.tolist(), np.where(std > 0, std, 1).tolist()


def read_all(
    files: list[File],
    ignored: list[str],
    notes: list[str],
    read: Reader,
    cache: Cache,
    folder: Path,
    subset: str,
) -> Contents:
    """Decode the image files of a subset in threads, or take them from the cache.

    Args:
        files: the image files of the subset
        ignored: its other files
        notes: what the user should know of them
        read: decodes a file to uint8 (C, H, W); raises BadImage
        cache: where the decoded images are kept, see `cache.keep`
        folder: of all subsets; the cache is beside it
        subset: "train", "val" or "test"
    """
    stem = cache_stem(folder, subset, files, *read.keywords.values())
    if cache in ("disk", "auto") and (stored := load(stem)):
        (images, index), note = stored, ""
    else:
        # files by number, as the folder may be moved
        index = {"files": [], "digests": [], "counts": 0, "bad": []}
        images, note = keep(_decode(files, read, index), cache, stem, index)
    digests, counts, bad = index["digests"], np.asarray(index["counts"]), index["bad"]
    files, notes = [files[number] for number in index["files"]], [*notes, *[note] * bool(note)]
    return Contents(files, digests, counts, images, read, bad, ignored, notes)


def _decode(files: list[File], read: Reader, index: dict) -> Iterator[Tensor]:
    """The images of `files` in order; fills `index`, which the cache stores."""

    def examine(file: File) -> tuple[Tensor, str, np.ndarray] | BadImage:
        try:
            image = read(file.path)
        except BadImage as error:
            return error
        pixels = image.permute(1, 2, 0).numpy()
        # nothing counts faster than Pillow, which takes grey images without a channel axis
        histogram = Image.fromarray(pixels if len(image) == 3 else pixels[:, :, 0]).histogram()
        counts = np.array(histogram).reshape(len(image), 256)
        # of all values and some rows of pixels: a flipped image has the same values, other rows
        digest = hashlib.blake2b(counts, digest_size=16, key=repr(tuple(image.shape)).encode())
        digest.update(np.ascontiguousarray(pixels[:: 1 + len(pixels) // 32]))
        return image, digest.hexdigest(), counts

    with ThreadPoolExecutor(cores()) as threads:
        results = threads.map(examine, files)
        progress = tqdm(results, "reading images", len(files), leave=False, disable=None)
        for number, result in enumerate(progress):
            if isinstance(result, BadImage):
                index["bad"].append(str(result))
                continue
            image, digest, counts = result
            index["files"].append(number)
            index["digests"].append(digest)
            index["counts"] = index["counts"] + counts
            yield image


class ImageFile(Sequence):
    """uint8 images (C, H, W) in a file that holds only their bytes; read when needed.

    Args:
        path: the file
        shapes: (channels, height, width) of each image
    """

    def __init__(self, path: Path, shapes: list[list[int]]):
        self.path, self.shapes = path, shapes
        self.offsets = np.cumsum([0, *map(math.prod, shapes)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Tensor:
        channels, height, width = self.shapes[index]
        image = self._bytes[self.offsets[index] : self.offsets[index + 1]]
        return torch.from_numpy(image.reshape(height, width, channels)).permute(2, 0, 1)

    @functools.cached_property
    def _bytes(self) -> np.ndarray:
        return np.memmap(self.path, np.uint8, mode="c")  # writing to an image leaves the file alone

    def __reduce__(self) -> tuple[type, tuple]:
        return ImageFile, (self.path, self.shapes)  # a worker opens the file itself


def keep(
    images: Iterator[Tensor], cache: Cache, stem: Path, index: dict
) -> tuple[Sequence[Tensor] | None, str]:
    """Exhaust `images`, keep them as `cache` says, and return them with a note for the user.

    Returns a list for "ram", an ImageFile for "disk", None without a cache. "auto" starts in
    memory, moves to a file when that gets full, and keeps nothing if no file can be written.
    Images are uint8 (C, H, W), the channels of a pixel together in memory.

    Args:
        images: the images as they are decoded
        cache: see above
        stem: path of the file without suffix
        index: plain data to store with a file; complete once `images` is exhausted
    """
    note = ""
    if cache in ("ram", "auto"):
        kept, size = [], 0
        limit = free_memory() // SHARE if cache == "auto" else math.inf
        for image in images:
            kept.append(image)
            size += image.numel()
            if size > limit:
                break
        else:
            return kept, note
        images = itertools.chain(kept, images)
        del kept  # so that the memory is free once these are written
    if cache is not None:
        try:
            return _write(images, stem, index)
        except OSError as error:
            if cache == "disk":
                raise
            reason = f"memory is short, and {error.filename}: {error.strerror}"
            note = f"the images are decoded in each epoch: {reason}"
    collections.deque(images, maxlen=0)  # every image is examined, none is kept
    return None, note


def _write(images: Iterator[Tensor], stem: Path, index: dict) -> tuple[ImageFile, str]:
    path, shapes = stem.with_suffix(".bin"), []
    stem.parent.mkdir(exist_ok=True)
    for stale in stem.parent.glob(f"{stem.name.rpartition('-')[0]}-*"):
        stale.unlink(missing_ok=True)
    with atomic_write(path) as file:
        for image in images:
            file.write(image.permute(1, 2, 0).contiguous().numpy())
            shapes.append(list(image.shape))
        size = file.tell()
    # The index comes last: where it is, the images are complete.
    content = json.dumps(index | {"shapes": shapes}, default=np.ndarray.tolist)
    write_text(stem.with_suffix(".json"), content)
    note = f"the decoded images are kept in {path} ({size / 2**20:,.0f} MB)"
    return ImageFile(path, shapes), note


def load(stem: Path) -> tuple[ImageFile, dict] | None:
    """The stored images and index of `keep`; None if they are missing or damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        index = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
        images = ImageFile(stem.with_suffix(".bin"), index.pop("shapes"))
        if images.path.stat().st_size == images.offsets[-1]:
            return images, index
    return None


def cache_stem(folder: Path, subset: str, files: list[File], *settings: int | None) -> Path:
    """Path without suffix at which the decoded `files` of a subset are stored.

    Its name changes with the names, sizes and times of the files, and with the settings of reading.
    """
    digest = hashlib.blake2b(repr((VERSION, settings)).encode(), digest_size=8)
    for file in files:
        row = file.name, file.target, *stamp(file.path)
        digest.update(repr(row).encode())
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}.cache") / f"{subset}-{digest.hexdigest()}"


def stamp(path: str) -> tuple[int, int]:
    """Size in bytes and time of the last change (ns) of a file; (-1, -1) if there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def free_memory() -> int:
    """Bytes of memory available without swapping; 2 GiB if the system does not say."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
        return int(re.search(r"MemAvailable: +(\d+) kB", meminfo)[1]) * 1024
    except (OSError, TypeError):
        return 2**31
