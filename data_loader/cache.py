"""The images of a folder: decoded once, in threads, and kept for later epochs.

They are kept in memory, or in a file that later runs use, too.
"""

import collections
import contextlib
import errno
import functools
import hashlib
import itertools
import logging
import math
import re
import zlib
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

from data_loader.files import DataFolder, File, class_name
from data_loader.images import BadImage, DeepImage, Range, common_range, examine
from data_loader.index import Index, Record
from data_loader.near_copies import thumbnail
from utils.engine.launch import cores
from utils.errors import UserError
from utils.files import atomic_write, printable

SHARE = 4  # "auto" takes at most a quarter of the free memory
Cache = Literal["ram", "disk", "auto"] | None
Reader = functools.partial[Tensor]  # of read_image


@dataclass
class Contents:
    """The readable images of one folder, and what is wrong with the other files.

    Attributes:
        files: the files
        images: the decoded images, uint8 (C, H, W), if they are kept
        read: reads a file, for images that are not kept
        bad: a line per file that cannot be read
        notes: what the user should know besides
    """

    files: list[File]
    images: Sequence[Tensor] | None
    read: Reader
    bad: list[str]
    notes: list[str]

    @property
    def pixel_range(self) -> Range:
        """What values of more than 8 bits are scaled from."""
        return self.read.keywords["pixel_range"]

    def image(self, index: int) -> Tensor:
        """An image, uint8 (C, H, W)."""
        return self.read(self.files[index].path) if self.images is None else self.images[index]

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Of each channel, over all pixels scaled to 0..1; std is 1 for a constant channel."""
        if not self.files:
            raise UserError('there are no training images for normalize "data"')
        count = 255 * sum(math.prod(file.record.shape[1:]) for file in self.files)
        totals = np.sum([file.record.sums for file in self.files], axis=0).tolist()
        # in whole numbers, so that nothing is lost
        variances = [count * square - 255 * total**2 for total, square in zip(*totals, strict=True)]
        std = [math.sqrt(variance / 255) / count for variance in variances]
        return [total / count for total in totals[0]], [value or 1.0 for value in std]

    def digest(self) -> str:
        """Changes with the name, the pixels or the class of any image, not with their order."""
        rows = sorted((class_name(f.name), f.record.digest, f.label) for f in self.files)
        return hashlib.blake2b(repr(rows).encode(), digest_size=16).hexdigest()


class ImageStore:
    """The images of a data set, each read once; shared by the loaders of its subsets.

    Args:
        folder: the data set
        cache: where the decoded images are kept, see `keep`
        pixel_range: what values of more than 8 bits are scaled from; "data" becomes what the
            training images have, which is only looked for once an image has more
    """

    def __init__(self, folder: DataFolder, cache: Cache, pixel_range: Range):
        self.folder, self.cache, self.pixel_range = folder, cache, pixel_range
        self._index: Index | None = None
        self._contents: dict[str, Contents] = {}

    def contents(self, subset: str, read: Reader) -> Contents:
        """The images of a subset, decoded in threads by `read` or taken from the cache."""
        if subset not in self._contents:
            try:
                self._contents[subset] = self._read(subset, read)
            except DeepImage:
                train, _ = self._files("train", read)
                self._examine(train, functools.partial(read, pixel_range="data"))
                values = [file.record.values for file in train if file.record.values]
                self.pixel_range = common_range(values)
                self._contents[subset] = self._read(subset, read)
        return self._contents[subset]

    def indexed_digest(self, subset: str, read: Reader) -> str | None:
        """The `Contents.digest` of a subset, if the index knows all its files; reads no image."""
        files, _ = self._files(subset, read)
        good = [file for file in files if not file.record.bad]
        is_known = all(file.record.digest for file in good)
        return Contents(good, None, read, [], []).digest() if is_known else None

    def _read(self, subset: str, read: Reader) -> Contents:
        files, notes = self._files(subset, read)
        read = functools.partial(read, pixel_range=self.pixel_range)
        path, images = self._path(subset, files), None
        if self.cache is None or (self.cache != "ram" and path.exists()):
            self._examine(files, read)
            shapes = [file.record.shape for file in files if not file.record.bad]
            images = self.cache and ImageFile.load(path, shapes)
        if self.pixel_range == "data" and any(file.record.values for file in files):
            raise DeepImage
        cache_notes = []
        if images is None and self.cache is not None:
            decoded = _decode(files, range(len(files)), read, wanted=True)
            images, cache_notes = keep(decoded, self.cache, path)
        notes = [*notes, *self._index.update(subset, {file.name: file.record for file in files})]
        if self.pixel_range == "data":  # there are only 8 bits
            self.pixel_range = None if subset == "train" else "data"
            read.keywords["pixel_range"] = None
        good = [file for file in files if not file.record.bad]
        bad = [f"{printable(file.path)}: {file.record.bad}" for file in files if file.record.bad]
        return Contents(good, images, read, bad, notes + cache_notes)

    def _files(self, subset: str, read: Reader) -> tuple[list[File], list[str]]:
        """The files of a subset with what the index knows of them, and sentences for the user."""
        self._index = self._index or Index(self.folder.folder, *read.keywords.values())
        files, notes = self.folder.files(subset)
        look = self._index.look
        return [f._replace(record=look(f.path, f.name, f.label, subset)) for f in files], notes

    def _examine(self, files: list[File], read: Reader) -> None:
        """Complete the records of files that are new or have changed."""
        scaled = read.keywords["pixel_range"]
        new = [n for n, file in enumerate(files) if not file.record.is_complete(scaled)]
        collections.deque(_decode(files, new, read, wanted=False), maxlen=0)

    def _path(self, subset: str, files: list[File]) -> Path:
        """Where a subset's decoded images are stored: the name changes with what they depend on."""
        scaled = None if self.pixel_range == "data" else self.pixel_range
        settings = self._index.made_by, scaled, "crc32"
        digest = hashlib.blake2b(repr(settings).encode(), digest_size=8)
        for file in files:
            digest.update(repr((file.name, *file.record[:2])).encode())
        return self._index.folder / f"{subset}-{digest.hexdigest()}.bin"


def _decode(
    files: list[File], numbers: Sequence[int], read: Reader, wanted: bool
) -> Iterator[Tensor]:
    """Completes the records of the files with these numbers; yields their images if `wanted`."""

    def complete(number: int) -> tuple[Record, Tensor | None]:
        file, pixel_range = files[number], read.keywords["pixel_range"]
        record, is_complete = file.record, file.record.is_complete(pixel_range)
        if record.bad:
            return record, None
        try:
            image, values = examine(file.path, **read.keywords)
        except DeepImage as deep:
            if wanted:
                raise
            return record._replace(values=list(deep.args)), None
        except BadImage as error:
            size = record.size if error.lasting else -1
            return Record(size, record.changed, file.label, record.part, error.reason), None
        if is_complete:
            return record, image
        pixels = image.permute(1, 2, 0).numpy()
        # nothing counts faster than Pillow, which takes grey images without a channel axis
        histogram = Image.fromarray(pixels if len(image) == 3 else pixels[:, :, 0]).histogram()
        counts = np.array(histogram).reshape(len(image), 256)
        # of all values and some rows of pixels: a flipped image has the same values, other rows
        digest = hashlib.blake2b(counts, digest_size=16, key=repr(tuple(image.shape)).encode())
        digest.update(np.ascontiguousarray(pixels[:: 1 + len(pixels) // 32]))
        sums = [(counts @ np.arange(256) ** power).tolist() for power in (1, 2)]
        pixel_range = pixel_range if values else None
        row = *record[:4], None, values, pixel_range, digest.hexdigest(), list(image.shape), sums
        return Record(*row, thumbnail(pixels)), image

    with ThreadPoolExecutor(cores()) as threads:
        results = threads.map(complete, numbers)
        progress = tqdm(results, "reading images", len(numbers), leave=False, disable=None)
        for number, (record, image) in zip(numbers, progress, strict=True):
            files[number] = files[number]._replace(record=record)
            if wanted and image is not None:
                yield image


class ImageFile(Sequence):
    """uint8 images (C, H, W) in a file that holds their bytes, then the CRC-32 of each image (4
    bytes, little-endian); read when needed.

    Args:
        path: the file
        shapes: (channels, height, width) of each image
    """

    def __init__(self, path: Path, shapes: list[list[int]]):
        self.path, self.shapes = path, shapes
        self.offsets = np.cumsum([0, *map(math.prod, shapes)], dtype=np.int64)

    @classmethod
    def load(cls, path: Path, shapes: list[list[int]]) -> "ImageFile | None":
        """The file as it was stored; None if it is damaged, which is logged."""
        images, stored = cls(path, shapes), []
        with contextlib.suppress(OSError, ValueError):
            stored = images._bytes[images.offsets[-1] :].view("<u4").tolist()
        with ThreadPoolExecutor(cores()) as threads:
            if stored and list(threads.map(images._checksum, range(len(stored)))) == stored:
                return images
        logging.getLogger("data").warning(f"{path} is damaged: the images are decoded again")
        return None

    def _checksum(self, index: int) -> int:
        return zlib.crc32(self._bytes[self.offsets[index] : self.offsets[index + 1]])

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Tensor:
        channels, height, width = self.shapes[index]
        image = self._bytes[self.offsets[index] : self.offsets[index + 1]]
        return torch.from_numpy(image.reshape(height, width, channels)).permute(2, 0, 1)

    @functools.cached_property
    def _bytes(self) -> np.ndarray:
        # reading beyond the end of a shorter file would kill the process
        if self.path.stat().st_size != self.offsets[-1] + 4 * len(self):
            raise OSError(errno.EIO, "damaged: its size has changed", str(self.path))
        return np.memmap(self.path, np.uint8, mode="c")  # writing to an image leaves the file alone

    def __reduce__(self) -> tuple[type, tuple]:
        return ImageFile, (self.path, self.shapes)  # a worker opens the file itself


def keep(
    images: Iterator[Tensor], cache: Literal["ram", "disk", "auto"], path: Path
) -> tuple[Sequence[Tensor] | None, list[str]]:
    """Exhaust `images`, keep them as `cache` says; return them, and sentences for the user.

    Returns a list for "ram", an ImageFile for "disk". "auto" starts in memory, moves to a file when
    that gets full, and keeps nothing if no file can be written. Images are uint8 (C, H, W), the
    channels of a pixel together in memory.

    Args:
        images: the images as they are decoded
        cache: see above
        path: of the file
    """
    if cache in ("ram", "auto"):
        kept, size = [], 0
        limit = free_memory() // SHARE if cache == "auto" else math.inf
        for image in images:
            kept.append(image)
            size += image.numel()
            if size > limit:
                break
        else:
            return kept, []
        images = itertools.chain(kept, images)
        del kept  # so that the memory is free once these are written
    try:
        return _write(images, path)
    except OSError as error:
        if cache == "disk":
            raise
        collections.deque(images, maxlen=0)  # every image is examined, none is kept
        reason = f"memory is short, and {error.filename}: {error.strerror}"
        return None, [f"the images are decoded in each epoch: {reason}"]


def _write(images: Iterator[Tensor], path: Path) -> tuple[ImageFile, list[str]]:
    shapes: list[list[int]] = []
    checksums: list[int] = []
    path.parent.mkdir(exist_ok=True)
    for stale in path.parent.glob(f"{path.stem.partition('-')[0]}-*"):
        stale.unlink(missing_ok=True)
    with atomic_write(path) as file:
        for image in images:
            pixels = image.permute(1, 2, 0).contiguous().numpy()
            file.write(pixels)
            checksums.append(zlib.crc32(pixels))
            shapes.append(list(image.shape))
        file.write(np.array(checksums, "<u4").tobytes())
        size = file.tell() / 2**20
    return ImageFile(path, shapes), [f"the decoded images are kept in {path} ({size:,.0f} MB)"]


def free_memory() -> int:
    """Bytes of memory available without swapping; 2 GiB if the system does not say."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
        return int(re.search(r"MemAvailable: +(\d+) kB", meminfo)[1]) * 1024
    except (OSError, TypeError):
        return 2**31
