"""Does a file compute what its network computes?"""

import math
from itertools import zip_longest

import numpy as np
import torch

from exporter.evaluator import Evaluation
from utils.errors import RunError

# Of the largest output; rounding alone is 5e-5 in an untrained inception_v3, a tenth in the others.
TOLERANCE = 1e-4
SIZES = (1, 5)  # one as in production, and one that differs from the example's


def prove(
    reference: Evaluation, exported: Evaluation, probabilities: bool = False
) -> dict[str, float | list[int] | None]:
    """Compare all outputs of a network and of its file for the same batches of `SIZES`.

    With `probabilities` the softmax of both is compared, because the file gives that. "agreement"
    is the share of samples with the same predicted class, None if there are no classes. Outputs
    that are all zero, or NaN, do not pass. Raises RunError if the outputs have other shapes.
    """
    agreement = None
    if reference.predicted is not None and exported.predicted is not None:
        agreement = float((reference.predicted == exported.predicted).mean())
    differences, relatives = [0.0], []
    for place, parts in reference.outputs.items():
        others = exported.outputs.get(place, [])
        shapes = zip_longest(*([list(part.shape) for part in each] for each in (parts, others)))
        if wrong := next((pair for pair in shapes if pair[0] != pair[1]), None):
            raise RunError("the network gives an output of {}, the file one of {}".format(*wrong))
        pairs = zip(parts, others, strict=True)
        compared = [_compare(*pair, probabilities) for pair in pairs]
        difference, largest = np.max(compared, axis=0).tolist()
        differences.append(difference)
        if largest > 0 or difference != 0:
            relatives.append(difference / largest if largest > 0 else math.nan)
    relative = float(np.max(relatives)) if relatives else math.nan
    return {
        "samples": reference.samples,
        "batch_sizes": list(SIZES),
        "max_difference": float(np.max(differences)),
        "relative_difference": relative,
        "tolerance": TOLERANCE,
        "agreement": agreement,
        "passed": relative <= TOLERANCE and agreement in (None, 1.0),
    }


def _compare(one: np.ndarray, other: np.ndarray, probabilities: bool) -> tuple[float, float]:
    """The largest difference, and the largest finite number in the first."""
    if probabilities:
        one, other = (torch.from_numpy(part).softmax(1).numpy() for part in (one, other))
    one, other = one.astype(np.float64), other.astype(np.float64)
    apart = np.subtract(one, other, out=np.zeros_like(one), where=one != other)  # inf equals inf
    return np.abs(apart).max(initial=0), np.abs(one[np.isfinite(one)]).max(initial=0)
