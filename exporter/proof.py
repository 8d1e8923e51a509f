"""Whether a file says what the network says."""

from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-4  # of the largest output; rounding alone stays below 3e-6 in all of torchvision's families
SIZES = (1, 5)  # one as on the line, and one that no example had


def in_sizes(batches: Iterable[tuple[Tensor, Tensor]], sizes: tuple[int, ...] = SIZES) -> Iterator[tuple[Tensor, Tensor]]:
    """The same samples, in batches of these sizes in turn."""
    samples = (sample for data, target in batches for sample in zip(data, target, strict=True))
    for size in cycle(sizes):
        batch = list(islice(samples, size))
        if not batch:
            return
        data, target = zip(*batch, strict=True)
        yield torch.stack(data), torch.stack(target)


def prove(reference: np.ndarray, exported: np.ndarray, probabilities: bool = False) -> dict[str, Any]:
    """Compare the outputs of a network and of its file for the same samples (N, ...).

    With `probabilities` that is what the file gives, and what is compared. "agreement" is the share of samples of the
    same likeliest class, None where there are no classes. Zeros, or what is no number, prove nothing.
    """
    if reference.shape != exported.shape:
        raise ValueError(f"outputs {reference.shape} and {exported.shape}")
    classes = reference.ndim == 2 and reference.shape[1] > 1
    agreement = float((reference.argmax(1) == exported.argmax(1)).mean()) if classes else None
    if probabilities:
        reference, exported = softmax(reference), softmax(exported)
    difference, largest = float(np.abs(reference - exported).max()), float(np.abs(reference).max())
    relative = difference / largest if largest > 0 else float("nan")
    return {
        "samples": len(reference),
        "batch_sizes": list(SIZES),
        "max_difference": difference,
        "relative_difference": relative,
        "tolerance": TOLERANCE,
        "agreement": agreement,
        "passed": relative <= TOLERANCE and agreement in (None, 1.0),
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
