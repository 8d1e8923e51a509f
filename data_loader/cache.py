"""The images of a folder: decoded once, in threads, and kept for later epochs and runs.

They are kept in files, of which a later start makes only what is missing, or in memory.
"""

import collections
import contextlib
import functools
import hashlib
import itertools
import logging
import math
import re
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset
from tqdm import tqdm

from data_loader.files import DataFolder, Files, class_name
from data_loader.images import BadImage, DeepImage, Range, common_range, examine, size_as_read
from data_loader.index import DIGEST, Index, Records
from data_loader.near_copies import thumbnail
from utils.engine.launch import cores
from utils.errors import UserError
from utils.files import atomic_write, printable

SHARE = 4  # "auto" takes at most a quarter of the free disk or memory
SAMPLE = 32  # images whose headers tell "auto" how large the others are
MOST_PACKS = 8  # files of decoded images of a subset, before they are joined
BLOCK = 4096  # images that wait for a thread
Cache = Literal["ram", "disk", "auto"] | None
Reader = functools.partial[Tensor]  # of read_image


@dataclass
class Contents:
    """The readable images of one folder, and what is wrong with the other files.

    Attributes:
        files: the files
        records: what is known of them
        images: the decoded images, uint8 (C, H, W), if they are kept
        read: reads a file, for images that are not kept
        bad: a line per file that cannot be read
        notes: what the user should know besides
        checking: reads the images, if they are checked while they are read
    """

    files: Files
    records: Records
    images: Sequence[Tensor] | None
    read: Reader
    bad: list[str]
    notes: list[str]
    checking: "Checking | None" = None

    @property
    def pixel_range(self) -> Range:
        """What values of more than 8 bits are scaled from."""
        return self.read.keywords["pixel_range"]

    @property
    def is_checked(self) -> bool:
        """Whether all files were read."""
        return bool(self.records.known("data").all())

    def image(self, index: int) -> Tensor | None:
        """An image, uint8 (C, H, W); None if it is bad, which only `checking` may find."""
        if self.checking is not None:
            return self.checking.image(index)
        if self.images is not None:
            try:
                return self.images[index]
            except OSError as error:
                _warn_once(f"{error}: such images are decoded again")
        return self.read(self.files[index].path)

    def take(self, indices: np.ndarray) -> "Contents":
        """The same for some of the images."""
        images = None if self.images is None else Subset(self.images, indices)
        files, records = self.files.take(indices), self.records.take(indices)
        return replace(self, files=files, records=records, images=images, checking=None)

    def good(self) -> "Contents":
        """The same without the images that are known to be bad."""
        return self.take(np.flatnonzero(self.records.good()))

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Of each channel, over all pixels scaled to 0..1; std is 1 for a constant channel."""
        if not len(self.files):
            raise UserError('there are no training images for normalize "data"')
        shapes, sums = self.records.shapes, self.records.table["content"]["sums"]
        count = 255 * int(shapes[:, 1:].prod(1).sum())
        totals = sums[:, :, : shapes[0, 0]].sum(0).tolist()
        # in whole numbers, so that nothing is lost
        variances = [count * square - 255 * total**2 for total, square in zip(*totals, strict=True)]
        std = [math.sqrt(variance / 255) / count for variance in variances]
        return [total / count for total in totals[0]], [value or 1.0 for value in std]

    def digest(self) -> str:
        """Changes with the name, the pixels or the class of any image, not with their order."""
        names = [class_name(name) for name in self.files.each_name()]
        labels, size = list(self.files.each_label()), 2 * DIGEST
        digests = np.ascontiguousarray(self.records.table["digest"]).tobytes().hex()
        digest = hashlib.blake2b(b"[", digest_size=16)
        order = sorted(range(len(names)), key=names.__getitem__)
        for start in range(0, len(order), BLOCK):
            rows = [(names[n], digests[n * size : (n + 1) * size], labels[n])
                    for n in order[start : start + BLOCK]]  # fmt: skip
            digest.update(f"{', ' if start else ''}{repr(rows)[1:-1]}".encode())
        digest.update(b"]")
        return digest.hexdigest()


class ImageStore:
    """The images of a data set, each read once; shared by the loaders of its subsets.

    Args:
        folder: the data set
        cache: where the decoded images are kept: "disk" in files, "ram" in memory, None nowhere;
            "auto": the first of these that has room
        pixel_range: what values of more than 8 bits are scaled from; "data" becomes what the
            training images have, which is only looked for once an image has more
    """

    def __init__(self, folder: DataFolder, cache: Cache, pixel_range: Range):
        self.folder, self.cache, self.pixel_range = folder, cache, pixel_range
        self._contents: dict[str, Contents] = {}

    def contents(self, subset: str, read: Reader) -> Contents:
        """The images of a subset, decoded in threads by `read` or taken from the cache."""
        if subset not in self._contents:
            try:
                self._contents[subset] = self._read(subset, read)
            except DeepImage:
                self.pixel_range = self._common_range(read)
                self._contents[subset] = self._read(subset, read)
        return self._contents[subset]

    def unchecked(self, subset: str, read: Reader, stops: bool) -> Contents:
        """All images of a subset, of which none is read before it is needed; see `Checking`."""
        key = f"{subset}, unchecked"
        if key not in self._contents:
            files, notes = self.folder.files(subset)
            index = self._index(read)
            records, is_stored = index.look(files, subset)
            if not is_stored:
                notes = [*notes, *index.update(subset, files, records)]
            read = functools.partial(read, pixel_range=self.pixel_range)
            checking = Checking(Reading(files, records, read), index, subset, stops)
            contents = Contents(files, records, None, read, _bad(files, records), notes, checking)
            self._contents[key] = contents
        return self._contents[key]

    def indexed_digest(self, subset: str, read: Reader) -> str | None:
        """The `Contents.digest` of a subset, if the index knows all its files; reads no image."""
        files, _ = self.folder.files(subset)
        records, _ = self._index(read).look(files, subset)
        contents = Contents(files, records, None, read, [], []).good()
        return contents.digest() if contents.records.table["is_read"].all() else None

    def _index(self, read: Reader) -> Index:
        return Index(self.folder.folder, read.keywords["channels"], read.keywords["side"])

    def _common_range(self, read: Reader) -> Range:
        files, _ = self.folder.files("train")
        records, _ = self._index(read).look(files, "train")
        reading = Reading(files, records, functools.partial(read, pixel_range="data"))
        reading.examine()
        return common_range([values for values, _ in records.deep.values()])

    def _read(self, subset: str, read: Reader) -> Contents:
        files, notes = self.folder.files(subset)
        index = self._index(read)
        records, is_stored = index.look(files, subset)
        reading = Reading(files, records, functools.partial(read, pixel_range=self.pixel_range))
        cache = _Cache(index.folder, subset, reading)
        try:
            if self.pixel_range == "data" and records.deep:
                raise DeepImage
            cache.fill(self.cache)
            if self.pixel_range == "data" and records.deep:
                raise DeepImage
        finally:  # also what an interrupted check has found
            if reading.has_read or cache.has_written or not is_stored:
                cache.notes += index.update(subset, files, records)
        cache.remove_stale()
        if self.pixel_range == "data":  # there are only 8 bits
            self.pixel_range = None if subset == "train" else "data"
            reading.read.keywords["pixel_range"] = None
        bad, notes = _bad(files, records), notes + cache.notes
        contents = Contents(files, records, None, reading.read, bad, notes).good()
        contents.images = cache.images
        if cache.is_on_disk:
            contents.images = KeptImages(index.folder, contents.records)
        return contents


def _bad(files: Files, records: Records) -> list[str]:
    """A line per file that cannot be read."""
    reasons = sorted(records.bad.items())
    return [f"{printable(files[place].path)}: {reason}" for place, reason in reasons]


class Reading:
    """Reads image files, in threads, and notes what they are.

    Args:
        files: the files
        records: of these; they are completed
        read: reads a file
    """

    def __init__(self, files: Files, records: Records, read: Reader):
        self.files, self.records, self.read = files, records, read
        self.has_read = False

    def examine(self) -> None:
        """Complete the records of files that are new or have changed."""
        new = np.flatnonzero(~self.records.known(self.read.keywords["pixel_range"]))
        collections.deque(self.decode(new, wanted=False), maxlen=0)

    def decode(self, places: np.ndarray, wanted: bool = True) -> Iterator[tuple[int, Tensor]]:
        """Completes the records of the files at these places; yields those that can be read, with
        their images, if `wanted`.
        """
        known = self.records.known(self.read.keywords["pixel_range"])

        def one(place: int) -> tuple[tuple | None, Tensor | None]:
            return self.one(place, bool(known[place]), wanted)

        # threads.map takes all it is given at once
        blocks = [places[start : start + BLOCK].tolist() for start in range(0, len(places), BLOCK)]
        with ThreadPoolExecutor(cores()) as threads:
            results = itertools.chain.from_iterable(
                zip(block, threads.map(one, block), strict=True) for block in blocks
            )
            progress = tqdm(results, "reading images", len(places), leave=False, disable=None)
            for place, (found, image) in progress:
                if found is not None:
                    self.records.set(place, *found)
                    self.has_read = True
                if wanted and image is not None:
                    yield place, image

    def one(
        self, place: int, is_known: bool, wanted: bool = True
    ) -> tuple[tuple | None, Tensor | None]:
        """What `Records.set` takes about a file, None if that is known; and its image."""
        pixel_range, size = self.read.keywords["pixel_range"], self.records.table["size"][place]
        if place in self.records.bad:
            return None, None
        try:
            image, values = examine(self.files[place].path, **self.read.keywords)
        except DeepImage as deep:
            if wanted:
                raise
            return (size, None, {"values": list(deep.args)}), None
        except BadImage as error:
            return (size if error.lasting else -1, error.reason), None
        if is_known:
            return None, image
        pixels = image.permute(1, 2, 0).numpy()
        # nothing counts faster than Pillow, which takes grey images without a channel axis
        histogram = Image.fromarray(pixels if len(image) == 3 else pixels[:, :, 0]).histogram()
        counts = np.array(histogram).reshape(len(image), 256)
        # of all values and some rows of pixels: a flipped image has the same values, other rows
        digest = hashlib.blake2b(counts, digest_size=DIGEST, key=repr(tuple(image.shape)).encode())
        digest.update(np.ascontiguousarray(pixels[:: 1 + len(pixels) // 32]))
        known = {
            "values": values,
            "range": pixel_range if values else None,
            "digest": digest.digest(),
            "shape": image.shape,
            "sums": [counts @ np.arange(256) ** power for power in (1, 2)],
            "thumbnail": thumbnail(pixels),
        }
        return (size, None, known), image


class Checking:
    """Reads images and notes what they are, in several processes at once.

    Args:
        reading: reads a file
        index: gets what was found
        part: the subset
        stops: raise BadImage for an image that cannot be read
    """

    def __init__(self, reading: Reading, index: Index, part: str, stops: bool):
        self.reading, self.index, self.part, self.stops = reading, index, part, stops
        known = torch.from_numpy(reading.records.known(reading.read.keywords["pixel_range"]))
        self.known = known.share_memory_()  # by workers, too
        self.bad = torch.zeros_like(known).share_memory_()
        self.bad[list(reading.records.bad)] = True

    def image(self, place: int) -> Tensor | None:
        """An image, uint8 (C, H, W); None, which is logged once, if it cannot be read."""
        if self.bad[place]:
            return None
        found, image = self.reading.one(place, bool(self.known[place]))
        if found is not None:
            file, row = self.reading.files[place], self.reading.records.table[place]
            record = Records(np.array([[row["size"], row["changed"]]]))
            record.set(0, *found)
            self.index.add(file.name, record.row(0, self.part, file.label))
            self.known[place], self.bad[place] = True, image is None
            if image is None and self.stops:
                raise BadImage(printable(file.path), record.bad[0])
            if image is None:
                reason = f"{printable(file.path)}: {record.bad[0]}"
                logging.getLogger("data").warning(f"left out: {reason}")
        return image


class _Cache:
    """The decoded images of a subset, in memory or in files of DATA_DIR.cache."""

    def __init__(self, folder: Path, subset: str, reading: Reading):
        self.folder, self.subset, self.reading = folder, subset, reading
        self.images: list[Tensor] | None = None
        self.is_on_disk = self.has_written = False
        self.notes: list[str] = []

    def fill(self, cache: Cache) -> None:
        """Decode what is not there, and complete the records."""
        if cache == "disk":
            self._fill_files()
        elif cache == "auto":
            self._fill_what_has_room()
        elif cache == "ram":
            self._fill_memory()
        else:
            self.reading.examine()

    def remove_stale(self) -> None:
        """Delete files without any image of this subset."""
        if self.is_on_disk:
            for path in self.folder.glob(f"{self.subset}-*.bin"):
                if path.name not in self._used():
                    path.unlink(missing_ok=True)

    def _fill_what_has_room(self) -> None:
        size, free = self._size(), free_disk(self.folder)
        reason = f"{in_words(free)} are free in {self.folder.parent}"
        kept = self._sizes(self._whole()).sum()
        if size - kept <= free // SHARE:
            try:
                self._fill_files()
                return
            except OSError as error:
                reason = f"{error.filename or self.folder}: {error.strerror}"
        if size <= (memory := free_memory()) // SHARE:
            self._fill_memory()
            self.notes.append(f"the decoded images are kept in memory: {reason}")
        else:
            self.reading.examine()
            self.notes.append(
                f"the images are decoded in each epoch: they would take {in_words(size)}, "
                f"{in_words(memory)} of memory are free, and {reason}"
            )

    def _fill_memory(self) -> None:
        good = np.flatnonzero(self.reading.records.good())
        self.images = [image for _, image in self.reading.decode(good)]

    def _fill_files(self) -> None:
        """Write the images that no file holds to another one; once there are many, write one."""
        records, reading = self.reading.records, self.reading
        whole = self._whole()
        copied = np.array([], int)
        if len(self._used()) >= MOST_PACKS:
            copied = np.flatnonzero(whole)
        missing = np.flatnonzero(records.good() & ~whole)
        if len(copied) or len(missing):
            self.folder.mkdir(exist_ok=True)
            old = KeptImages(self.folder, records)
            images = itertools.chain(
                ((place, old[place]) for place in copied.tolist()), reading.decode(missing)
            )
            self._write(images, self._pack_name([*copied.tolist(), *missing.tolist()]))
        sizes = self._sizes(records.table["pack"] >= 0)
        self.is_on_disk = True
        self.notes.append(f"the decoded images are kept in {self.folder} ({in_words(sizes.sum())})")

    def _write(self, images: Iterator[tuple[int, Tensor]], name: str) -> None:
        places, offsets, checksums = [], [], []
        with atomic_write(self.folder / name) as file:
            for place, image in images:
                pixels = image.permute(1, 2, 0).contiguous().numpy()
                places.append(place)
                offsets.append(file.tell())
                checksums.append(zlib.crc32(pixels))
                file.write(pixels)
        if places:
            self.has_written = True
            self.reading.records.keep(places, name, offsets, checksums)
        else:
            (self.folder / name).unlink()

    def _pack_name(self, places: list[int]) -> str:
        """The name of a file of these images; it changes with what they depend on."""
        table, files = self.reading.records.table, self.reading.files
        digest = hashlib.blake2b(repr(self.reading.read.keywords).encode(), digest_size=8)
        for place in places:
            row = files[place].name, int(table["size"][place]), int(table["changed"][place])
            digest.update(repr(row).encode())
        return f"{self.subset}-{digest.hexdigest()}.bin"

    def _whole(self) -> np.ndarray:
        """Whether each image (N,) is in a file, of which no part is missing."""
        records, table = self.reading.records, self.reading.records.table
        lengths = [-1]
        for name in records.packs:
            path = self.folder / name
            lengths.append(path.stat().st_size if path.exists() else -1)
        ends = table["content"]["offset"] + records.shapes.prod(1)
        is_known = records.known(self.reading.read.keywords["pixel_range"])
        return is_known & table["is_read"] & (ends <= np.array(lengths)[table["pack"] + 1])

    def _used(self) -> list[str]:
        packs = np.unique(self.reading.records.table["pack"])
        return [self.reading.records.packs[pack] for pack in packs.tolist() if pack >= 0]

    def _sizes(self, chosen: np.ndarray) -> np.ndarray:
        """Bytes of each of the chosen images, as far as they were read."""
        return self.reading.records.shapes[chosen].prod(1)

    def _size(self) -> int:
        """Bytes of all images; for those that were never read by the headers of some."""
        table, good = self.reading.records.table, self.reading.records.good()
        unknown = np.flatnonzero(good & ~table["is_read"])
        settings = {k: v for k, v in self.reading.read.keywords.items() if k != "pixel_range"}
        some = unknown[:: 1 + len(unknown) // SAMPLE].tolist()
        sizes = [size_as_read(self.reading.files[place].path, **settings) for place in some]
        mean = sum(sizes) / max(1, len(sizes))
        return int(self._sizes(good & table["is_read"]).sum() + mean * len(unknown))


class KeptImages(Sequence):
    """uint8 images (C, H, W) in files that hold their bytes; read when needed. Raises OSError for
    one that is damaged.

    Args:
        folder: of the files
        records: of the images, which say where each is
    """

    def __init__(self, folder: Path, records: Records):
        self.paths, content = [folder / name for name in records.packs], records.table["content"]
        self.packs, self.shapes = records.table["pack"].copy(), records.shapes
        self.offsets, self.checksums = content["offset"].copy(), content["checksum"].copy()
        self.is_checked = np.zeros(len(self.packs), bool)
        self._opened: dict[int, np.ndarray] = {}
        for pack in np.unique(self.packs[self.packs >= 0]).tolist():
            with contextlib.suppress(OSError):
                self._file(pack)  # now, as another run may delete it

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> Tensor:
        channels, height, width = self.shapes[index].tolist()
        start, pack = int(self.offsets[index]), int(self.packs[index])
        pixels = self._file(pack)[start : start + channels * height * width]
        if not self.is_checked[index]:
            if zlib.crc32(pixels) != self.checksums[index] or not len(pixels):
                raise OSError(f"{self.paths[pack]} is damaged")
            self.is_checked[index] = True
        return torch.from_numpy(pixels.reshape(height, width, channels)).permute(2, 0, 1)

    def _file(self, pack: int) -> np.ndarray:
        if pack not in self._opened:
            try:  # writing to an image leaves the file alone
                file = np.memmap(self.paths[pack], np.uint8, mode="c")
            except ValueError:
                raise OSError(f"{self.paths[pack]} is empty") from None
            self._opened[pack] = file.view(np.ndarray)
        return self._opened[pack]

    def __getstate__(self) -> dict[str, object]:
        return vars(self) | {"_opened": {}}  # a worker opens the files itself


@functools.cache
def _warn_once(text: str) -> None:
    logging.getLogger("data").warning(text)


def in_words(size: int) -> str:
    """Bytes as MB."""
    return f"{size / 2**20:,.0f} MB"


def free_disk(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    place = next(place for place in (folder, *folder.parents) if place.is_dir())
    return shutil.disk_usage(place).free


def free_memory() -> int:
    """Bytes of memory available without swapping; 2 GiB if the system does not say."""
    try:
        meminfo = Path("/proc/meminfo").read_text()
        return int(re.search(r"MemAvailable: +(\d+) kB", meminfo)[1]) * 1024
    except (OSError, TypeError):
        return 2**31
