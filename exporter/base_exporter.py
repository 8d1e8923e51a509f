from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from exporter.deployed import ExportedNetwork, Runner
from utils.errors import UserError


class BaseExporter(ABC):
    """An export format: write `suffix`, `export` and `predict`.

    The proof, the comparison and the reports use only these.

    Args:
        preprocess: the file takes decoded images, uint8 (N, H, W, C), of the network's input size,
            and normalizes them itself
        softmax: the file gives probabilities instead of logits
        distance: the file has a second output "distance": how unlike the training data each sample
            is, 1 is the limit. A test with the section "inspection" must have found that before
        max_accuracy_drop: maximum accuracy drop of int8 against fp32; 0.01 is one percentage point
    """

    suffix: str

    def __init__(
        self,
        preprocess: bool = False,
        softmax: bool = False,
        distance: bool = False,
        max_accuracy_drop: float = 0.01,
    ):
        self.preprocess, self.softmax, self.distance = preprocess, softmax, distance
        self.max_accuracy_drop = max_accuracy_drop

    @abstractmethod
    def export(
        self, model: nn.Module, example: dict[str, Tensor], path: Path, metadata: dict
    ) -> None:
        """Write `model` and its metadata to `path`; the file must accept batches of any size.

        Args:
            model: in evaluation mode; takes the values of `example`, and gives a tensor, or a
                tuple of them
            example: the file's inputs by name, for a batch of 2
            path: ends in `suffix`
            metadata: plain data: classes, input, preprocess, config ...; "signature" says which
                axes of the inputs are dynamic, and names the outputs
        """

    @abstractmethod
    def predict(self, path: Path, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs of the network in the file for a batch: arrays (N, ...) by name."""

    def load(self, path: Path, threads: int = 1, device: str = "cpu") -> Runner:
        """`predict` of one file, for many batches; override it if opening the file takes time."""
        return partial(self.predict, path)

    def quantize(self, path: Path, samples: list[dict[str, np.ndarray]], target: Path) -> None:
        """Write the network in `path` as int8 to `target`, calibrated on `samples`: batches of 1.

        Raises UserError if the format has no int8.
        """
        raise UserError(f"--int8: {type(self).__name__} does not support int8")

    def network(self, path: Path, state: dict, threads: int = 1) -> ExportedNetwork:
        """Return the file as a network; `state` is its checkpoint, and the "signature"."""
        state = state | {"preprocessed": self.preprocess, "softmax": self.softmax}
        return ExportedNetwork(path.name, partial(self.load, path, threads), state)
