"""Compare the outputs of an exported file with those of its network."""

import logging
import math
from itertools import zip_longest

import numpy as np
import torch

from data_loader.images import read_bytes
from exporter.base_exporter import TOLERANCE
from exporter.deployed import DECISION, ExportedNetwork
from exporter.evaluator import Evaluation, Evaluator
from exporter.preprocessing import Decision
from utils.errors import RunError

ROUNDING = 1e-5  # of a probability: a sample so near to a threshold may be on either side
SIZES = (1, 5)  # one as in production, and one that differs from the example's


def prove(
    reference: Evaluation,
    exported: Evaluation,
    probabilities: bool = False,
    tolerance: float = TOLERANCE,
    exact: bool = True,
) -> dict[str, float | list[int] | None]:
    """Compare all outputs of a network and of its file for the same batches of `SIZES`.

    With `probabilities` the softmax of both is compared, because the file gives that. "agreement"
    is the share of samples with the same predicted class, None if there are no classes; it must be
    1 for an `exact` file. Outputs that are all zero, or NaN, do not pass. Raises RunError if the
    outputs have other shapes.
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
        "tolerance": tolerance,
        "agreement": agreement,
        "passed": relative <= tolerance and (not exact or agreement in (None, 1.0)),
    }


def prove_decisions(
    evaluator: Evaluator, network: ExportedNetwork, reference: Evaluation, exported: Evaluation
) -> dict[str, float | dict | None]:
    """Compare the decisions of a file with those that follow from its network's outputs.

    Returns "decisions", for what share they are the same, "rounding", how many of the others are as
    near to a threshold as numbers are rounded, and "opencv", see `decode_with_opencv`.

    Args:
        evaluator: of the network
        network: the file
        reference: of the network
        exported: of the file
    """
    rule = network.state["decision"]
    decision = Decision(rule, network.state["classes"])
    wanted = decision(torch.from_numpy(reference.probabilities))[0].numpy()
    is_other = exported.decisions != wanted
    rounding = 0
    if decision.target is not None:
        probability = reference.probabilities[is_other, decision.target, None]
        limits = np.array([rule["threshold"], rule["sure_threshold"]])
        rounding = int((np.abs(probability - limits) <= ROUNDING).any(1).sum())
    opencv = decode_with_opencv(evaluator, network, wanted)
    if opencv and (other := opencv["files"] - opencv["same"]):
        logging.getLogger("export").warning(
            f"decoded by OpenCV, {other} of {opencv['files']} images get another decision"
        )
    share = 1 - float(is_other.mean())
    return {"decisions": share, "rounding": rounding, "opencv": opencv}


def decode_with_opencv(
    evaluator: Evaluator, network: ExportedNetwork, wanted: np.ndarray
) -> dict | None:
    """How many of the samples' image files, decoded by OpenCV, get the decisions `wanted` (N,) from
    an exported file; None if OpenCV is not installed. It reads all of a file, in 8 bits.
    """
    try:
        import cv2
    except ImportError:
        return None
    run, same = network.opened(evaluator.engine.device), 0
    files = [file.path for file in evaluator.loader.part().files[: len(wanted)]]
    for path, number in zip(files, wanted, strict=True):
        # not imread, which cannot open every name on Windows
        image = cv2.imdecode(np.frombuffer(read_bytes(path), np.uint8), cv2.IMREAD_COLOR)
        if image is not None:
            pixels = np.ascontiguousarray(image[None, :, :, ::-1]).repeat(network.batch or 1, 0)
            same += bool(run({"input": pixels})[DECISION][0] == number)
    return {"version": cv2.__version__, "files": len(files), "same": same}


def _compare(one: np.ndarray, other: np.ndarray, probabilities: bool) -> tuple[float, float]:
    """The largest difference, and the largest finite number in the first."""
    if probabilities:
        one, other = (torch.from_numpy(part).softmax(1).numpy() for part in (one, other))
    one, other = one.astype(np.float64), other.astype(np.float64)
    apart = np.subtract(one, other, out=np.zeros_like(one), where=one != other)  # inf equals inf
    return np.abs(apart).max(initial=0), np.abs(one[np.isfinite(one)]).max(initial=0)
