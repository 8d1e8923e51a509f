"""The report on image files before training: counts, imbalance, bad files, copies."""

import collections
import itertools
from collections.abc import Sequence

from data_loader.cache import Contents
from data_loader.files import first_few
from data_loader.near_copies import near_copies
from utils.files import printable

IMBALANCE = 10  # ratio of the largest class to the smallest from which the report mentions it
ADVICE = 'data_loader.args.balance, "sampler" or "loss", compensates for that'
LINES = 20  # at most so many lines about copies


def check_images(subsets: dict[str, Contents], classes: Sequence[str]) -> list[str]:
    """The report on the images of "train", "val", "test": counts, imbalance, bad files, copies."""
    lines = []
    for subset, contents in subsets.items():
        totals = collections.Counter(label for file in contents.files for label in file.labels)
        counts = {name: totals[name] for name in classes}
        listing = ", ".join(f"{name} {count}" for name, count in counts.items())
        lines.append(f"{subset}: {len(contents.files)} images ({listing})")
        if missing := [name for name, count in counts.items() if count == 0]:
            lines.append(f"{subset} has no images of {', '.join(missing)}")
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
    return [
        *lines,
        *(f"left out: {line}" for line in bad),
        *_copies(subsets),
        *_near_copies(subsets),
    ]


def _ranges(subset: str, contents: Contents) -> list[str]:
    """What the values of images with more than 8 bits are scaled from."""
    values = [file.record.values for file in contents.files if file.record.values]
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
    groups = collections.defaultdict(list)
    for subset, contents in subsets.items():
        for file in contents.files:
            groups[file.record.digest].append((subset, file.label, printable(file.path)))
    lines, harmless = [], 0
    for copies in groups.values():
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


def _near_copies(subsets: dict[str, Contents]) -> list[str]:
    """A line per two subsets with images that are near copies of each other."""
    lines = []
    for (one, first), (other, second) in itertools.combinations(subsets.items(), 2):
        if pairs := near_copies(second, first):
            count = f"{len(pairs)} images look like copies"
            count = "1 image looks like a copy" if len(pairs) == 1 else count
            shown = first_few([f"{printable(a.path)} of {printable(b.path)}" for a, b in pairs])
            how = "turned, mirrored, resized or compressed again"
            lines.append(f"{other}: {count} of {one}'s, {how}: {shown}")
    return lines
