"""Which file is in which part of a split: each class in each part, and a lot in one part only."""

import collections
from collections.abc import Iterable, Sequence

from utils.engine.randomness import derive_seed


def share_out(
    files: Iterable[tuple[str, str, str]], shares: Sequence[float], seed: int, known: dict[str, int]
) -> dict[str, int]:
    """The part of each file: name -> index of its share.

    Files with equal groups share a part. Each class is divided by the shares as exactly as they
    allow. Those in `known` stay where they are: a new file joins its group, or else the part that
    lacks most of its class.

    Args:
        files: (name, class, group); a group of one file is called by its name
        shares: of the parts, adding up to 1
        seed: determines the order in which files are given away
        known: the parts that were given before
    """
    groups: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    for name, label, group in files:
        groups[group].append((name, label))
    counts = {label: [0] * len(shares) for members in groups.values() for _, label in members}
    parts: dict[str, int] = {}

    def give(members: list[tuple[str, str]], part: int) -> None:
        for name, label in members:
            parts[name] = part
            counts[label][part] += 1

    waiting = []
    for group, members in groups.items():
        given = [known[name] for name, _ in members if name in known]
        if given:
            give(members, collections.Counter(given).most_common(1)[0][0])
        else:
            waiting.append((derive_seed(seed, "part", group), members))
    # large groups first: the small ones even out what they leave
    for _, members in sorted(waiting, key=lambda pair: (-len(pair[1]), pair[0])):
        sizes = collections.Counter(label for _, label in members)

        def lack(part: int, sizes: collections.Counter = sizes) -> float:
            return sum(
                size * (shares[part] * (sum(counts[label]) + size) - counts[label][part])
                for label, size in sizes.items()
            )

        usable = [part for part, share in enumerate(shares) if share > 0]
        give(members, max(usable, key=lack))
    return parts
