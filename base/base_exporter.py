from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from utils.errors import UserError


class BaseExporter(ABC):
    """A format for trained networks: write `suffix`, `export` and `predict`.

    The proof, the comparison and the reports work through these.

    Args:
        preprocess: take pictures as they are decoded, uint8 (N, H, W, C), and normalise them in the file; their size
            must be the network's already
        softmax: give probabilities
        max_accuracy_drop: what the int8 file's accuracy may lose against the file's, 0.01 for one point
    """

    suffix: str

    def __init__(self, preprocess: bool = False, softmax: bool = False, max_accuracy_drop: float = 0.01):
        self.preprocess, self.softmax, self.max_accuracy_drop = preprocess, softmax, max_accuracy_drop

    @abstractmethod
    def export(self, model: nn.Module, example: Tensor, path: Path, metadata: dict[str, Any]) -> None:
        """Write `model`, in evaluation mode, with what is to be known of it; it must take batches of any size.

        Args:
            model: takes what the file is to take, and gives what that is to give
            example: a batch of 2
            path: ends in `suffix`
            metadata: plain data: classes, input, preprocess, config ...
        """

    @abstractmethod
    def predict(self, path: Path, batch: np.ndarray) -> np.ndarray:
        """What the network in the file says of a batch (N, ...)."""

    def load(self, path: Path, threads: int = 1, device: str = "cpu") -> Callable[[np.ndarray], np.ndarray]:
        """`predict` of one file, for many batches; override it where opening the file takes time."""
        return partial(self.predict, path)

    def quantize(self, path: Path, samples: list[np.ndarray], target: Path) -> None:
        """Write the network of `path` in 8 bits to `target`; its ranges are those that `samples`, batches of 1, need."""
        raise UserError(f"--int8: {type(self).__name__} writes no int8 files")
