"""What pytorch-template's files import from `utils`."""

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class MetricTracker:
    """Running means of numbers by name.

    Args:
        keys: the names
        writer: shows each number in TensorBoard, too
    """

    def __init__(self, *keys: str, writer: Any = None):
        self.keys, self.writer = keys, writer
        self.reset()

    def reset(self) -> None:
        self.totals, self.counts = dict.fromkeys(self.keys, 0.0), dict.fromkeys(self.keys, 0)

    def update(self, key: str, value: float, n: int = 1) -> None:
        """Count `value`, the mean of `n` samples or batches."""
        if self.writer is not None:
            self.writer.add_scalar(key, value)
        self.totals[key] += float(value) * n
        self.counts[key] += n

    def avg(self, key: str) -> float:
        """The mean since the last reset; 0 if there was nothing."""
        return self.totals[key] / max(self.counts[key], 1)

    def result(self) -> dict[str, float]:
        return {key: self.avg(key) for key in self.keys}


def inf_loop(data_loader: Iterable) -> Iterator:
    """The loader's batches without end, pass after pass."""
    for loader in itertools.repeat(data_loader):
        yield from loader


def prepare_device(n_gpu_use: int) -> "tuple[torch.device, list[int]]":
    """The device to compute on, and the numbers of the GPUs to use, as many as there are."""
    import torch  # imported lazily: --help must not load it

    count = min(n_gpu_use, torch.cuda.device_count())
    return torch.device("cuda:0" if count > 0 else "cpu"), list(range(count))


def read_json(path: str | Path) -> dict:
    """The content of a plain JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_json(content: object, path: str | Path) -> None:
    """Write plain JSON, indented."""
    Path(path).write_text(json.dumps(content, indent=4), encoding="utf-8")


def ensure_dir(path: str | Path) -> None:
    """Make the folder, and those above it, if it is missing."""
    Path(path).mkdir(parents=True, exist_ok=True)
