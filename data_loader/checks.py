"""The report on image files before training: counts, imbalance, bad files, copies."""

import contextlib
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data_loader.cache import Contents
from data_loader.files import first_few
from data_loader.index import cache_folder
from data_loader.near_copies import near_copies
from utils.files import printable, write_json

IMBALANCE = 10  # ratio of the largest class to the smallest from which the report mentions it
ADVICE = 'data_loader.args.balance, "sampler" or "loss", compensates for that'
LINES = 20  # at most so many lines about copies
CLASSES, FEW = 50, 5  # of more classes a line names only a few
MOST = 200_000_000  # pairs of images that are compared, as more would take too long
KEPT = 20  # pairs of subsets whose copies are remembered


def check_images(subsets: dict[str, Contents], classes: Sequence[str], folder: Path) -> list[str]:
    """The report on the images of "train", "val", "test": counts, imbalance, bad files, copies.

    `folder` is the data set's, beside which is kept what takes long to find.
    """
    lines = []
    for subset, contents in subsets.items():
        totals = contents.files.counts()
        counts = {name: totals.get(name, 0) for name in classes}
        lines.append(f"{subset}: {len(contents.files)} images ({_listing(counts)})")
        if missing := [name for name, count in counts.items() if count == 0]:
            lines.append(f"{subset} has no images of {first_few(missing, CLASSES)}")
        present = [name for name in counts if counts[name]]
        if subset == "train" and present:
            most, least = max(present, key=counts.get), min(present, key=counts.get)
            if counts[most] > IMBALANCE * counts[least]:
                two = f"{counts[most]} are of {most} and {counts[least]} of {least}"
                lines.append(f"of {len(contents.files)} training images {two}; {ADVICE}")
    if len(classes) == 1:
        lines.append(f"there is only one class ({classes[0]}), so there is nothing to learn")
    lines += [line for subset, contents in subsets.items() for line in _ranges(subset, contents)]
    # The subsets may be parts of one folder: say everything once.
    lines += dict.fromkeys(note for contents in subsets.values() for note in contents.notes)
    bad = dict.fromkeys(line for contents in subsets.values() for line in contents.bad)
    lines += [_unchecked(s, contents) for s, contents in subsets.items() if not contents.is_checked]
    subsets = {s: contents for s, contents in subsets.items() if contents.is_checked}
    return [
        *lines,
        *(f"left out: {line}" for line in bad),
        *_copies(subsets),
        *_near_copies(subsets, folder),
    ]


def _unchecked(subset: str, contents: Contents) -> str:
    """What is not known before all images of a subset were read."""
    known, count = int(contents.records.known("data").sum()), len(contents.files)
    return (
        f"{subset}: {known} of {count} images were read before; the others are checked while they "
        "are read: bad files are left out then, and copies in other subsets and classes, bits and "
        "pixel range are not compared in this run"
    )


def _listing(counts: dict[str, int]) -> str:
    """The number of images of each class; of many classes only some."""
    shown = [f"{name} {count}" for name, count in counts.items()]
    if len(shown) > CLASSES:
        least, most = min(counts.values()), max(counts.values())
        shown[FEW:] = [f"... {len(counts)} classes of {least} to {most} images"]
    return ", ".join(shown)


def _ranges(subset: str, contents: Contents) -> list[str]:
    """What the values of images with more than 8 bits are scaled from."""
    values = [pair for pair, _ in contents.records.deep.values()]
    if not values:
        return []
    line = f"{subset}: {len(values)} of {len(contents.files)} images have more than 8 bits"
    if contents.pixel_range == "file":
        return [f"{line}; each is scaled by its own type, unless pixel_range says from what"]
    low, high = contents.pixel_range
    lowest, highest = min(pair[0] for pair in values), max(pair[1] for pair in values)
    line += f", values {lowest:,.6g} to {highest:,.6g}, scaled from {low:,.6g}..{high:,.6g}"
    if isinstance(highest, int):
        line += f": {high - low + 1:,.10g} of {2 ** (16 if highest < 2**16 else 32):,} levels"
    if beyond := sum(pair[0] < low or pair[1] > high for pair in values):
        line += f"; {beyond} images have values beyond, which are clipped"
    return [line]


def _copies(subsets: dict[str, Contents]) -> list[str]:
    """A line per image that is in several subsets or classes; other copies are only counted."""
    parts = list(subsets.items())
    if not parts:
        return []
    digests = np.concatenate([contents.records.table["digest"] for _, contents in parts])
    starts = np.cumsum([0, *(len(contents.files) for _, contents in parts)])
    lines, harmless = [], 0
    for group in sorted(_equal(digests), key=min):
        copies = []
        for place in sorted(group):
            number = int(np.searchsorted(starts, place, side="right")) - 1
            subset, contents = parts[number]
            file = contents.files[place - int(starts[number])]
            copies.append((subset, file.label, printable(file.path)))
        for kind, part in (("subsets", 0), ("classes", 1)):
            first: dict[str, str] = {}
            for copy in copies:
                first.setdefault(copy[part], copy[2])
            if len(first) > 1:
                where = f"{len(first)} {kind} ({', '.join(first)})"
                lines.append(f"the same image in {where}: {', '.join(first.values())}")
        harmless += len(copies) - len({copy[:2] for copy in copies})
    if len(lines) > LINES:
        lines[LINES:] = [f"and {len(lines) - LINES} more images in several subsets or classes"]
    if harmless:
        lines.append(f"{harmless} images are copies of another of the same subset and class")
    return lines


def _equal(values: np.ndarray) -> Iterator[list[int]]:
    """The places of equal values, for each that occurs more than once."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(order) else order
    sizes = np.diff(np.r_[starts, len(order)])
    several = sizes > 1
    for start, size in zip(starts[several].tolist(), sizes[several].tolist(), strict=True):
        yield order[start : start + size].tolist()


def _near_copies(subsets: dict[str, Contents], folder: Path) -> list[str]:
    """A line per two subsets with images that are near copies of each other."""
    lines = []
    for (one, first), (other, second) in itertools.combinations(subsets.items(), 2):
        if not 0 < len(first.files) * len(second.files) <= MOST:
            continue
        key = f"{other} {second.digest()} {one} {first.digest()}"
        if pairs := remembered(folder, key, functools.partial(near_copies, second, first)):
            count = f"{len(pairs)} images look like copies"
            count = "1 image looks like a copy" if len(pairs) == 1 else count
            paths = ((second.files.path(name), first.files.path(copied)) for name, copied in pairs)
            shown = first_few([f"{printable(a)} of {printable(b)}" for a, b in paths])
            how = "turned, mirrored, resized or compressed again"
            lines.append(f"{other}: {count} of {one}'s, {how}: {shown}")
    return lines


def remembered(
    folder: Path, key: str, find: Callable[[], list[tuple[str, str]]]
) -> list[tuple[str, str]]:
    """What `find` gives; once found, from the file copies.json in DATA_DIR.cache.

    Args:
        folder: of the data set
        key: changes with what is found
    """
    path, stored = cache_folder(folder) / "copies.json", {}
    with contextlib.suppress(OSError, ValueError, TypeError):
        stored = dict(json.loads(path.read_text(encoding="utf-8")))
        return [(str(one), str(other)) for one, other in stored.get(key)]
    found = find()
    latest = list(stored.items())[-KEPT:]
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        write_json(path, dict(latest) | {key: found})
    return found
