"""Fair latency comparison of several networks in onnxruntime."""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.onnx_file import session

if TYPE_CHECKING:
    from torch import Tensor

SECONDS = 3.0  # about how long a comparison takes


def interleaved(
    functions: Mapping[str, Callable[[], object]], rounds: int | None = None, warm_up: int = 3
) -> dict[str, list[float]]:
    """Milliseconds of each function in each round.

    A round calls each function once, in random order: other load on the machine affects all alike,
    and no function always follows the same one. The first `warm_up` rounds do not count. Without
    `rounds` there are as many as take about 3 seconds, from 20 to 200.
    """
    if rounds is None:
        start_time = time.perf_counter()
        for function in functions.values():
            function()
        rounds = max(20, min(200, int(SECONDS / (time.perf_counter() - start_time))))
    order, generator = list(functions), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(warm_up + rounds):
        generator.shuffle(order)
        for name in order:
            start_time = time.perf_counter()
            functions[name]()
            times[name].append((time.perf_counter() - start_time) * 1000)
    return {name: each[warm_up:] for name, each in times.items()}


def ratio(times: Mapping[str, list[float]], name: str, reference: str) -> float:
    """Time of `name` as a multiple of `reference`: the median over the rounds."""
    pairs = zip(times[name], times[reference], strict=True)
    return statistics.median(one / other for one, other in pairs)


def spread(times: list[float]) -> dict[str, float]:
    """{"p50", "p95"}: the times, in milliseconds, that half and 95 % of the runs did not exceed."""
    slowest = math.ceil(0.95 * len(times)) - 1
    return {"p50": statistics.median(times), "p95": sorted(times)[slowest]}


def spreads(times: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """The `spread` of each, and its "ratio" to the first."""
    ratios = {name: {"ratio": ratio(times, name, next(iter(times)))} for name in times}
    return {name: spread(each) | ratios[name] for name, each in times.items()}


def side_by_side(
    files: Mapping[str, Path | bytes], batch: "Tensor", threads: int, **others: Callable[[], object]
) -> dict[str, list[float]]:
    """Milliseconds of each ONNX file on the same `batch`, and of `others` in the same rounds."""
    inputs = {"input": batch.cpu().numpy()}
    runs = {name: partial(session(file, threads).run, None, inputs) for name, file in files.items()}
    return interleaved(runs | others)
