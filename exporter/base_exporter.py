from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from exporter.deployed import Runner
from utils.config.hints import PositiveInt, Share
from utils.errors import UserError

# Rounding alone is 5e-5 in an untrained inception_v3, a tenth of that in the others.
TOLERANCE = 1e-4
RESIZED = 0.05  # torch itself rounds otherwise on processors without AVX2


@dataclass(eq=False)
class BaseExporter(ABC):
    """An export format: write `suffix`, `export` and `predict`.

    The proof, the comparison and the reports use only these.

    Args:
        preprocess: true: the file takes uint8 (N, H, W, C) of the network's input size, and
            normalizes it itself. "image": it takes decoded images, uint8 RGB (N, H, W, 3) of any
            size, does all that the data loader does, and a classifier's file has two further
            outputs: "decision", a class number or -1 to ask a person, and "confidence"
        softmax: the file gives probabilities instead of logits
        distance: the file has a second output "distance": how unlike the training data each sample
            is, 1 is the limit. A test with the section "inspection" must have found that before
        batch: how many samples the file takes at once, with all sizes fixed; null for any number
        max_accuracy_drop: maximum accuracy drop of int8 against fp32; 0.01 is one percentage point
        max_escape_increase: instead: what share of the target class int8 may miss more than fp32,
            if it calls no more samples of other classes so; needs a section "inspection"
    """

    suffix: ClassVar[str]
    stem = "model"  # of the file's name
    exact = True  # the file computes in float32: each class must be the network's
    half = False  # the network in the file is converted to float16

    preprocess: bool | Literal["image"] = False
    softmax: bool = False
    distance: bool = False
    batch: PositiveInt | None = None
    max_accuracy_drop: float = 0.01
    max_escape_increase: Share | None = None

    @abstractmethod
    def export(
        self, model: nn.Module, example: dict[str, Tensor], path: Path, metadata: dict
    ) -> None:
        """Write `model` and its metadata to `path`; it must accept the shapes in the signature.

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

    @property
    def tolerance(self) -> float:
        """How far an output may be from the network's, as a share of the largest."""
        return RESIZED if self.preprocess == "image" else TOLERANCE

    def load(self, path: Path, threads: int = 1, device: str = "cpu") -> Runner:
        """`predict` of one file, for many batches; override it if opening the file takes time."""
        return partial(self.predict, path)

    def quantize(self, path: Path, samples: list[dict[str, np.ndarray]], target: Path) -> None:
        """Write the network in `path` as int8 to `target`, calibrated on `samples`: batches of 1.

        Raises UserError if the format has no int8.
        """
        raise UserError(f"--int8: {type(self).__name__} does not support int8")
