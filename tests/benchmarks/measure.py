"""Timing that a busy machine does not spoil: what is compared is run in turn, and ratios are taken
pair by pair.
"""

import contextlib
import io
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path


class Timings(dict):
    """name -> seconds of each round."""

    def median(self, name: str) -> float:
        return statistics.median(self[name])

    def ratio(self, one: str, other: str) -> float:
        """How many times as long `one` took as `other`: the median over the rounds."""
        return statistics.median(a / b for a, b in zip(self[one], self[other], strict=True))


def in_turn(rounds: int, actions: dict[str, Callable[[], object]], warm_up: int = 1) -> Timings:
    """Run all actions once a round, A B C A B C ...; the first `warm_up` rounds do not count."""
    timings = Timings({name: [] for name in actions})
    for number in range(warm_up + rounds):
        for name, action in actions.items():
            begun = time.perf_counter()
            action()
            if number >= warm_up:
                timings[name].append(time.perf_counter() - begun)
    return timings


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Within this, the progress bar believes that somebody looks."""

    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    before, sys.stderr = sys.stderr, Screen()
    try:
        yield
    finally:
        sys.stderr = before


def machine() -> str:
    """This machine in words: processor, cores that may be used, Python and torch; of a GPU its
    name.
    """
    import torch

    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in info.read_text().splitlines()
        if line.startswith("model name")
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [
        f"{cores} cores of {names[0] if names else platform.processor() or platform.machine()}"
    ]
    parts += [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return ", ".join([*parts, f"Python {platform.python_version()}", f"torch {torch.__version__}"])
