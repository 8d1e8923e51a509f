"""Which channels to remove: block after block, until enough are gone. Nothing is removed here."""

import bisect
import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from pruner.graph import ChannelGroup, Removals

ROUNDING = 1e-9  # a share that is missed by less is reached


class Block(NamedTuple):
    """Units of a group that go together, and the share of its scope that is gone before that."""

    sparsity: float
    group: ChannelGroup
    units: int


class Plan:
    """All blocks that can be removed, in the order in which they go.

    In each scope the block with the least important units goes next; of all scopes the one that has
    lost the least is next.

    Args:
        groups: those that may be narrowed
        part: of the way that is done by this step: groups with a `share` lose that much of it
        most: group name -> how many units it may lose, if fewer than allowed
    """

    def __init__(self, groups: list[ChannelGroup], part: float, most: dict[str, int] | None = None):
        self.most, self.gone = most or {}, {group.name: group.gone for group in groups}
        self.order = {g.name: np.argsort(g.importance, kind="stable") for g in groups}
        scopes: dict[str, list[ChannelGroup]] = {}
        for group in groups:
            scopes.setdefault(group.scope, []).append(group)
        self.fixed, self.free = [], []
        blocks = map(self._scope_blocks, scopes.values())
        for block in heapq.merge(*blocks, key=itemgetter(0)):
            if block.group.share is None:
                self.free.append(block)
            elif block.sparsity < block.group.share * part - ROUNDING:
                self.fixed.append(block)

    def _scope_blocks(self, groups: list[ChannelGroup]) -> Iterator[Block]:
        original, left = sum(g.original for g in groups), sum(g.left for g in groups)
        # merge looks at the next block of each group only, and takes the least important
        for _, group, units in heapq.merge(*map(self._group_blocks, groups), key=itemgetter(0)):
            yield Block(1 - left / original, group, units)
            left -= units * group.parts

    def _group_blocks(self, group: ChannelGroup) -> Iterator[tuple[float, ChannelGroup, int]]:
        """(mean importance, group, units) of each block that may be removed."""
        sums = np.cumsum([0.0, *group.importance[self.order[group.name]]])
        most = self.most.get(group.name, group.units)
        counts = [group.gone, *(count for count in group.allowed if group.gone < count <= most)]
        for before, after in pairwise(counts):
            yield (sums[after] - sums[before]) / (after - before), group, after - before

    def remove_share(self, share: float) -> Removals:
        """What to remove so that each scope loses at least this share, as far as allowed."""
        return self._removals([block for block in self.free if block.sparsity < share - ROUNDING])

    def remove_until(
        self, size: Callable[[Removals], float], goal: float, fill: bool = True
    ) -> Removals:
        """What to remove so that size(removals) <= goal; if that is impossible, all that may go.

        With `fill`, blocks stay after all where the goal leaves room, the largest first: blocks are
        coarse. Without it a smaller goal removes the same blocks and more.
        """

        def is_enough(count: int) -> bool:
            return size(self._removals(self.free[:count])) <= goal

        blocks = self.free[: bisect.bisect_left(range(len(self.free)), True, key=is_enough)]
        while fill:
            fitting: dict[float, list[Block]] = {}
            for latest in {block.group.scope: block for block in blocks}.values():
                fewer = [block for block in blocks if block is not latest]
                fitting.setdefault(size(self._removals(fewer)), fewer)
            largest = max((left for left in fitting if left <= goal), default=None)
            if largest is None:
                break
            blocks = fitting[largest]
        return self._removals(blocks)

    def _removals(self, blocks: list[Block]) -> Removals:
        counts = Counter(self.gone)
        for block in self.fixed + blocks:
            counts[block.group.name] += block.units
        return {name: order[: counts[name]] for name, order in self.order.items() if counts[name]}
