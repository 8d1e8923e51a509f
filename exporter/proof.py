"""Does a file compute what its network computes?"""

from collections.abc import Iterable, Iterator
from itertools import cycle, islice

import numpy as np
import torch
from torch import Tensor

# Of the largest output; rounding alone is 5e-5 in an untrained inception_v3, a tenth in the others.
TOLERANCE = 1e-4
SIZES = (1, 5)  # one as in production, and one that differs from the example's


def in_sizes(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the same samples, in batches of `SIZES` in turn."""
    samples = (sample for data, target in batches for sample in zip(data, target, strict=True))
    for size in cycle(SIZES):
        batch = list(islice(samples, size))
        if not batch:
            return
        data, target = zip(*batch, strict=True)
        yield torch.stack(data), torch.stack(target)


def prove(
    reference: np.ndarray, exported: np.ndarray, probabilities: bool = False
) -> dict[str, float | list[int] | None]:
    """Compare the outputs (N, ...) of a network and of its file for the same samples.

    With `probabilities` the softmax of both is compared, because the file gives that. "agreement"
    is the share of samples with the same predicted class, None if there are no classes. Outputs
    that are all zero, or NaN, do not pass.
    """
    if reference.shape != exported.shape:
        raise ValueError(f"outputs {reference.shape} and {exported.shape}")
    classes = reference.ndim == 2 and reference.shape[1] > 1
    agreement = float((reference.argmax(1) == exported.argmax(1)).mean()) if classes else None
    if probabilities:
        reference, exported = (
            torch.from_numpy(outputs).softmax(1).numpy() for outputs in (reference, exported)
        )
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
