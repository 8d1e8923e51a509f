"""How much to remove for a network to be fast enough: found by measuring candidates."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter

from pruner.graph import Removals
from pruner.plan import Plan

TRIALS = 8
SEARCHES = 4  # each holds back another group
NEAR = 0.97  # the last step's latency is at least this share of the goal
ROUGHLY = 0.8  # that of the steps before
MARGIN = 0.98  # aim a little lower: another session measures a little more or less


@dataclass
class LatencySearch:
    """Looks for the cut after which a network is fast enough.

    Args:
        plan: makes a Plan, in which groups may lose at most what its argument `most` says
        macs: gives the multiply-adds that removals leave, as a share of the unpruned network's
        measure: gives the latency that they leave, likewise
    """

    plan: Callable[..., Plan]
    macs: Callable[[Removals], float]
    measure: Callable[[Removals], float]
    most: dict[str, int] = field(default_factory=dict, init=False)
    results: dict[tuple, tuple[float, Removals]] = field(default_factory=dict, init=False)

    def latency(self, share: float) -> float:
        """Latency with this share of multiply-adds left, as a share of the unpruned network's."""
        removals = self.plan(most=self.most).remove_until(self.macs, share, fill=False)
        key = tuple((name, len(units)) for name, units in removals.items())
        if key not in self.results:
            self.results[key] = self.measure(removals), removals
        return self.results[key][0]

    def find(self, goal: float, last: bool) -> Removals:
        """What to remove for a latency just below `goal`; empty if nothing was enough."""
        goal, near = MARGIN * goal, NEAR if last else ROUGHLY
        for _ in range(SEARCHES):
            share = bisect(self.latency, goal, near)
            if share is not None and self.latency(share) >= near * goal:
                break
            # One block takes the latency from above the goal to far below it: hold back the group
            # that matters most, so that others lose more instead.
            slow, fast = self._around(goal)
            kept = {name: slow.get(name, units[:0]) for name, units in fast.items()}
            more = [name for name, units in fast.items() if len(units) > len(kept[name])]
            if not more:
                break
            name = max(more, key=lambda name: self.macs(fast | {name: kept[name]}))
            self.most[name] = len(kept[name])
        return self._around(goal)[1]

    def _around(self, goal: float) -> tuple[Removals, Removals]:
        """The fastest result that is too slow, the slowest that is not; empty if there is none."""
        results = sorted(self.results.values(), key=itemgetter(0))
        slow = [removals for latency, removals in results if latency > goal]
        fast = [removals for latency, removals in results if latency <= goal]
        return slow[0] if slow else {}, fast[-1] if fast else {}


def bisect(measure: Callable[[float], float], goal: float, near: float) -> float | None:
    """The share of multiply-adds for which the latency is between near * goal and goal.

    Args:
        measure: gives the latency of a network with this share left, as a share of the original's
        goal: the latency wanted, as a share of the original's
        near: how close, as a share of `goal`

    If no trial is that close, it is the largest share that was fast enough; None if none was.
    """
    middle = goal * (1 + near) / 2
    slow, fast = (1.0, 1.0), (0.0, 0.0)  # (share, latency) on either side of the goal
    power = 1.0  # latency is about share ** power
    share = 0.9 * middle  # latency falls more slowly than the multiply-adds
    for _ in range(TRIALS):
        latency = measure(share)
        if near * goal <= latency <= goal:
            return share
        if latency <= goal:
            fast = max(fast, (share, latency))
        else:
            if latency < slow[1]:
                power = math.log(slow[1] / latency) / math.log(slow[0] / share)
            slow = min(slow, (share, latency))
        if fast[0] >= slow[0]:  # noise, or widths too coarse to tell apart
            break
        if fast[0]:
            part = (middle - fast[1]) / max(slow[1] - fast[1], 1e-9)
            share = fast[0] + (slow[0] - fast[0]) * min(0.9, max(0.1, part))
        else:
            share *= (middle / latency) ** (1 / min(1.5, max(0.3, power)))
    return fast[0] or None
