"""How much must go for a network to be fast enough: found by trying, as no count of operations tells."""

import math
from collections.abc import Callable

TRIALS = 8


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
