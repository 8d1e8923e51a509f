"""Timing that a busy machine does not spoil: what is compared is run in turn, and ratios are taken
pair by pair.
"""

import contextlib
import importlib
import io
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
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


class OwnProcess(subprocess.Popen):
    """An action that runs in a process of its own, as its users run it: settings that another one
    makes for its whole process, like keeping freed memory, neither help nor hinder it.

    Args:
        make: "module:function", whose result is the action
        arguments: of that function, as texts
        is_ours: set up the process as train.py does
    """

    def __init__(self, make: str, *arguments: object, is_ours: bool = False):
        command = [sys.executable, "-m", __name__, make, str(int(is_ours)), *map(str, arguments)]
        pipe = subprocess.PIPE
        super().__init__(command, stdin=pipe, stdout=pipe, text=True, bufsize=1)
        self._answered()

    def __call__(self) -> None:
        self.stdin.write("go\n")
        self._answered()

    def _answered(self) -> None:
        if not self.stdout.readline():
            raise RuntimeError(f"{self.args} ended: its message is above")


@contextlib.contextmanager
def ending(ways: dict[str, OwnProcess]) -> Iterator[None]:
    """End the processes afterwards."""
    with contextlib.ExitStack() as stack:
        for process in ways.values():
            stack.enter_context(process)
        yield


def serve(make: str, is_ours: str, *arguments: str) -> None:
    """The other end of OwnProcess: run the action once for each line that comes in."""
    if int(is_ours):
        from utils.engine import launch

        launch.configure_threads()
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    module, _, name = make.partition(":")
    answers, sys.stdout = sys.stdout, io.StringIO()
    with terminal():
        action = getattr(importlib.import_module(module), name)(*arguments)
        print("ready", file=answers, flush=True)
        for _ in sys.stdin:
            action()
            print("done", file=answers, flush=True)


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


if __name__ == "__main__":
    serve(*sys.argv[1:])
