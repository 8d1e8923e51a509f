"""Are these pictures fit to train on? Every file is decoded once, before training can stumble over it."""

import collections
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data_loader.cache import Cache, Keeper, stored
from data_loader.pictures import BadPicture, read_picture
from utils.cores import cores
from utils.errors import UserError

IMBALANCE = 10  # times as many pictures of one class as of another
LINES = 20  # of one kind in the report


@dataclass
class Contents:
    """The pictures of one folder that can be read, and what is wrong with the others.

    Attributes:
        paths: the files
        targets: their class numbers
        digests: a number for each, the same where the pixels are the same
        counts: how often each of the 256 values comes, for each channel (C, 256)
        pictures: the decoded pictures, uint8 (C, H, W), where they are kept
        bad: why a file was left out, a line each
        ignored: files that are no pictures by their names
        note: where the decoded pictures are kept, if that is to be known
    """

    paths: list[str] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    counts: np.ndarray | int = 0
    pictures: Sequence[Tensor] | None = None
    bad: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    note: str = ""

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Of each channel over all pixels, pictures taken as 0 to 1; channels that never vary have 1 as std."""
        if not self.paths:
            raise UserError('there are no training pictures for normalize "data"')
        values, shares = np.arange(256) / 255, self.counts / self.counts.sum(axis=1, keepdims=True)
        mean = shares @ values
        std = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1))
        return mean.tolist(), np.where(std > 0, std, 1).tolist()


def read_all(files: Sequence[tuple[str, int]], channels: int, side: int | None, cache: Cache, stem: Path) -> Contents:
    """Decode all `files` (path, class number), in threads, with `read_picture`'s channels and side.

    Where `cache` is "disk" or "auto", and the file that `stem` names holds them, that is taken instead.
    """
    if cache in ("disk", "auto") and (found := stored(stem)):
        return _from_index(files, *found)
    contents, keeper = Contents(), Keeper(cache, stem)

    def read(file: tuple[str, int]) -> tuple | BadPicture:
        try:
            picture = read_picture(file[0], channels, side)
        except BadPicture as error:
            return error
        pixels = picture.permute(1, 2, 0).numpy()
        histogram = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0]).histogram()  # the fastest there is
        counts = np.array(histogram).reshape(channels, 256)
        return picture, _digest(picture, counts), counts

    with ThreadPoolExecutor(cores()) as threads:
        found = tqdm(threads.map(read, files), desc="reading the pictures", total=len(files), leave=False, disable=None)
        for (path, target), result in zip(files, found, strict=True):
            if isinstance(result, BadPicture):
                contents.bad.append(str(result))
                continue
            picture, digest, counts = result
            contents.paths.append(path)
            contents.targets.append(target)
            contents.digests.append(digest)
            contents.counts = contents.counts + counts
            keeper.add(picture)
    contents.pictures = keeper.finish(_index(files, contents))
    contents.note = keeper.note
    return contents


def _digest(picture: Tensor, counts: np.ndarray) -> bytes:
    """Of all values together and some rows of pixels in their places: a mirrored picture has the former, not the latter."""
    rows = picture.permute(1, 2, 0)[:: 1 + picture.shape[1] // 32].contiguous()
    digest = hashlib.blake2b(counts, digest_size=16, key=repr(tuple(picture.shape)).encode())
    digest.update(rows.numpy())
    return digest.digest()


def _index(files: Sequence[tuple[str, int]], contents: Contents) -> dict:
    """What is known of the pictures, for a file beside theirs. Paths as places in `files`: the folder may be moved."""
    place = {path: number for number, (path, _) in enumerate(files)}
    return {
        "files": [place[path] for path in contents.paths],
        "digests": [digest.hex() for digest in contents.digests],
        "counts": np.asarray(contents.counts).tolist(),
        "bad": contents.bad,
    }


def _from_index(files: Sequence[tuple[str, int]], pictures: Sequence[Tensor], about: dict) -> Contents:
    paths, targets = zip(*(files[number] for number in about["files"]), strict=True) if about["files"] else ((), ())
    digests = [bytes.fromhex(digest) for digest in about["digests"]]
    return Contents(list(paths), list(targets), digests, np.asarray(about["counts"]), pictures, about["bad"])


def check_images(subsets: dict[str, Contents], classes: Sequence[str]) -> list[str]:
    """A line for each thing to know of the pictures of "train", "val", "test": counts, bad files, copies, imbalance."""
    lines = []
    for subset, contents in subsets.items():
        counts = dict(zip(classes, np.bincount(contents.targets, minlength=len(classes)).tolist(), strict=True))
        listing = ", ".join(f"{name} {count}" for name, count in counts.items())
        lines.append(f"{subset}: {len(contents.paths)} pictures ({listing})")
        if missing := [name for name, count in counts.items() if count == 0]:
            lines.append(f"{subset} has no pictures of {', '.join(missing)}")
        present = [count for count in counts.values() if count]
        if subset == "train" and present and max(present) > IMBALANCE * min(present):
            often, seldom = max(counts, key=counts.get), min((n for n in counts if counts[n]), key=counts.get)
            lines.append(
                f"train has {counts[often]} pictures of {often} and {counts[seldom]} of {seldom}; "
                'data_loader.args.balance, "sampler" or "loss", makes up for that'
            )
    lines += dict.fromkeys(contents.note for contents in subsets.values() if contents.note)
    bad = dict.fromkeys(f"left out: {line}" for contents in subsets.values() for line in contents.bad)
    ignored = dict.fromkeys(path for contents in subsets.values() for path in contents.ignored)
    if ignored:
        some = f"{', '.join(list(ignored)[:5])}{' ...' if len(ignored) > 5 else ''}"
        lines.append(f"{len(ignored)} files not looked at, as their names are not those of pictures: {some}")
    return [*lines, *bad, *_copies(subsets, classes)]


def _copies(subsets: dict[str, Contents], classes: Sequence[str]) -> list[str]:
    """Pictures that are there repeatedly: named where they are in two subsets or classes, else only counted."""
    places = collections.defaultdict(list)
    for subset, contents in subsets.items():
        for digest, target, path in zip(contents.digests, contents.targets, contents.paths, strict=True):
            places[digest].append((subset, classes[target], path))
    lines, harmless = [], 0
    for copies in places.values():
        for kind, place in (("subsets", 0), ("classes", 1)):
            first = {}
            for copy in copies:
                first.setdefault(copy[place], copy[2])
            if len(first) > 1:
                lines.append(f"the same picture in {len(first)} {kind} ({', '.join(first)}): {', '.join(first.values())}")
        harmless += len(copies) - len({copy[:2] for copy in copies})
    if len(lines) > LINES:
        lines[LINES:] = [f"and {len(lines) - LINES} more pictures in several subsets or classes"]
    if harmless:
        lines.append(f"{harmless} pictures are copies of another of the same subset and class")
    return lines
