"""How much must go for a network to be fast enough: found by trying, as no count of operations tells."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter

from pruner.graph import Removals

TRIALS = 8
SEARCHES = 4  # each with other groups held back
NEAR, ROUGHLY = 0.97, 0.8  # a latency is met from this share of it on: in the last step, and in those before
MARGIN = 0.98  # of a latency is aimed at: measured again, in another session, it is a little more or less


@dataclass
class LatencySearch:
    """Looks for the cut after which a network is fast enough.

    Args:
        choose: gives the removals that leave a share of the original's multiply-adds, where some groups, by name, may
            lose so many units only
        macs: gives the multiply-adds that removals leave
        measure: gives the latency that they leave, as a share of the original's
    """

    choose: Callable[[float, dict[str, int]], Removals]
    macs: Callable[[Removals], float]
    measure: Callable[[Removals], float]
    most: dict[str, int] = field(default_factory=dict, init=False)
    tried: dict[tuple, tuple[float, Removals]] = field(default_factory=dict, init=False)  # how many units go -> result

    def latency(self, share: float) -> float:
        """With this share of the original's multiply-adds, as a share of the original's."""
        removals = self.choose(share, self.most)
        key = tuple((name, len(units)) for name, units in removals.items())
        if key not in self.tried:
            self.tried[key] = self.measure(removals), removals
        return self.tried[key][0]

    def find(self, goal: float, last: bool) -> Removals:
        """What to remove for a latency a little below `goal`, nearer in the `last` step; empty where nothing was enough."""
        goal, near = MARGIN * goal, NEAR if last else ROUGHLY
        for _ in range(SEARCHES):
            share = meet(self.latency, goal, near)
            if share is not None and self.latency(share) >= near * goal:
                break
            # A block takes the latency from above to below: its group keeps it, and others lose more instead.
            slow, fast = self._around(goal)
            more = [name for name in fast if len(fast[name]) > len(slow.get(name, ()))]
            if not more:
                break
            name = max(more, key=lambda name: self.macs(fast | {name: slow.get(name, fast[name][:0])}))
            self.most[name] = len(slow.get(name, ()))
        return self._around(goal)[1]

    def _around(self, goal: float) -> tuple[Removals, Removals]:
        """Of what was tried the fastest that is too slow, and the slowest that is not; empty where there is none."""
        tried = sorted(self.tried.values(), key=itemgetter(0))
        slow = [removals for latency, removals in tried if latency > goal]
        fast = [removals for latency, removals in tried if latency <= goal]
        return slow[0] if slow else {}, fast[-1] if fast else {}


def meet(try_share: Callable[[float], float], goal: float, near: float) -> float | None:
    """The share of the multiply-adds with which the measured latency lies between near * goal and goal.

    Args:
        try_share: measures a network that has this share left; gives its latency as a share of the original's
        goal: the latency wanted, as a share of the original's
        near: how close, a share of `goal`

    Where no trial comes so close it is the largest share that was fast enough; None where none was.
    """
    middle = goal * (1 + near) / 2
    slow, fast = (1.0, 1.0), None  # (share, latency) on either side of what is wanted
    power = 1.0  # latency goes with share ** power
    share = 0.9 * middle  # latency falls more slowly than the multiply-adds do
    for _ in range(TRIALS):
        latency = try_share(share)
        if near * goal <= latency <= goal:
            return share
        if latency > goal:
            if latency < slow[1]:
                power = min(1.5, max(0.3, math.log(slow[1] / latency) / math.log(slow[0] / share)))
            slow = min(slow, (share, latency))
        elif fast is None or share > fast[0]:
            fast = (share, latency)
        if fast is None:
            share *= (middle / latency) ** (1 / power)
        elif fast[0] >= slow[0]:  # noise, or widths that cannot be told apart
            break
        else:
            rise = min(0.9, max(0.1, (middle - fast[1]) / max(slow[1] - fast[1], 1e-9)))
            share = fast[0] + (slow[0] - fast[0]) * rise
    return fast and fast[0]
