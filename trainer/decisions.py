"""Decisions of a classifier: the threshold for the class that must not be missed, and its cost.

An escape is a sample of the target class ("NG") that passes; overkill is a good sample that is
wrongly rejected.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import UserError

CONFIDENCE = 0.95
SMALLEST = 1e-7  # a probability, as float32 tells it from 0 and 1
SMALLEST_NORMAL = 1e-38  # a number that float32 has with all digits
# A few samples that are all right would ask for none at all.
LOG_TEMPERATURES = -1.5, 3.0
BINS = 15


def upper_bound(count: int, of: int, confidence: float = CONFIDENCE) -> float:
    """The largest rate that `count` of `of` samples leave possible, with this confidence.

    One-sided, exact: Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404.
    """
    from scipy.special import betaincinv  # takes a second to import

    return 1.0 if count >= of else float(betaincinv(count + 1, of - count, confidence))


def samples_needed(bound: float, confidence: float = CONFIDENCE) -> int:
    """How many samples, none of them missed, show that a rate is at most `bound`."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - bound))


def choose_threshold(probability: np.ndarray, is_target: np.ndarray, may_escape: int) -> float:
    """The threshold that misses `may_escape` samples of the target class, with a margin.

    It lies, by log-odds, between the least probable target sample that is caught and the next
    sample below, of any class: none of these samples changes sides. Of few samples the least one
    says little of where others will be, so their side gets more of the gap: the threshold is as far
    above the lower end as the targets' share of all samples, but at most in the middle.

    Args:
        probability: that of the target class (N,)
        is_target: whether a sample is of that class (N,); at least one is
        may_escape: how many of these may lie below the threshold, if the classes overlap
    """
    caught = np.sort(probability[is_target])[may_escape]
    below = probability[probability < caught]
    share = min(0.5, float(is_target.mean()))
    return _between(below.max(), caught, share) if len(below) else float(caught)


def _between(below: float, above: float, share: float = 0.5) -> float:
    """A probability between two, this share of the way by log-odds; `above` if float32 has none."""
    low, high = (math.log(p / (1 - p)) for p in np.clip((below, above), SMALLEST, 1 - SMALLEST))
    odds = low + share * (high - low)
    between = np.float32(1 / (1 + math.exp(-odds)))  # as probabilities are compared
    return float(between if below < between <= above else above)


def choose_sure(
    probability: np.ndarray, is_target: np.ndarray, threshold: float, false_allowed: int
) -> float:
    """The probability from which on a sample is of the target class without anybody looking at it.

    At least `threshold`; no more than `false_allowed` samples of other classes are beyond. It lies
    in the middle, by log-odds, between the likeliest of those that are not and the next sample, or
    certainty if there is none.
    """
    others = np.sort(probability[~is_target])[::-1]
    if len(others) <= false_allowed or others[false_allowed] < threshold:
        return threshold
    below = others[false_allowed]
    beyond = probability[probability > below]
    between = _between(below, beyond.min(initial=1.0))
    return between if between > below else float(np.nextafter(below, 2))


def escapes_allowed(count: int, settings: dict) -> int:
    """How many of `count` target samples the section "inspection" allows to be missed.

    With "max_escape_bound" as many as leave the bound at most that; -1 if `count` is too few.
    """
    if (bound := settings.get("max_escape_bound")) is None:
        return math.floor(count * settings.get("max_escape", 0.0) + 1e-9)
    confidence = settings.get("confidence", CONFIDENCE)
    return sum(upper_bound(missed, count, confidence) <= bound for missed in range(count)) - 1


def too_few(target: str, count: int, settings: dict) -> str | None:
    """What `count` samples of `target` cannot show of what the section "inspection" asks for."""
    if escapes_allowed(count, settings) >= 0:
        return None
    bound, confidence = settings["max_escape_bound"], settings.get("confidence", CONFIDENCE)
    return (
        f"inspection.max_escape_bound: {count} {target} cannot show that at most {bound:.2%} are "
        f"missed; that takes {samples_needed(bound, confidence)}, none of them missed"
    )


def outlook(target: str, count: int, others: int, settings: dict) -> str:
    """What a test can say at best if it chooses the threshold on so many validation samples."""
    confidence = settings.get("confidence", CONFIDENCE)
    least = upper_bound(0, count, confidence)
    return (
        f"inspection: even if none of the {count} {target} in the validation data is missed, up to "
        f"{least:.2%} may be, with {confidence:.0%} confidence; val_escape and val_overkill are at "
        f"the threshold that a test would choose on these and the {others} others, recall is by "
        "the likeliest class"
    )


def rates(
    called: np.ndarray, is_target: np.ndarray, confidence: float = CONFIDENCE
) -> dict[str, float | int | None]:
    """What a decision costs: target samples not `called` target, other samples called target.

    {"escape": share, "missed": count, "targets": of so many, "escape_bound": the largest share that
    this leaves possible}; likewise "overkill", "false", "others", "overkill_bound". Shares are None
    if there are no samples.
    """
    found, result = counts(called, is_target), {}
    for rate, count, of in ("escape", "missed", "targets"), ("overkill", "false", "others"):
        number, total = found[count], found[of]
        result |= {rate: number / total if total else None, count: number, of: total}
        result[f"{rate}_bound"] = upper_bound(number, total, confidence) if total else None
    return result


def counts(called: np.ndarray, is_target: np.ndarray) -> dict[str, int]:
    """{"missed", "targets"}: target samples not `called` target, and all of them; {"false",
    "others"}: other samples called target, and all of these.
    """
    missed, false = ~called[is_target], called[~is_target]
    return {
        "missed": int(missed.sum()), "targets": len(missed),
        "false": int(false.sum()), "others": len(false),
    }  # fmt: skip


def with_unsure(
    probability: np.ndarray,
    is_target: np.ndarray,
    threshold: float,
    sure_threshold: float,
    confidence: float = CONFIDENCE,
) -> dict[str, float | int | None]:
    """The `rates` if a person decides on the samples from `threshold` up to `sure_threshold`, and
    {"unsure": how many these are, "unsure_share", "unsure_bound"}.
    """
    # missed are those below the first, false those from the second on
    called = np.where(is_target, probability >= threshold, probability >= sure_threshold)
    unsure = int(((probability >= threshold) & (probability < sure_threshold)).sum())
    share, bound = unsure / len(called), upper_bound(unsure, len(called), confidence)
    found = rates(called, is_target, confidence)
    return found | {"unsure": unsure, "unsure_share": share, "unsure_bound": bound}


def find_temperature(probability: np.ndarray, target: np.ndarray) -> float:
    """What to divide a classifier's outputs by, so that its probabilities tell how often it is
    right: temperature scaling, Guo et al., arXiv:1706.04599.

    Args:
        probability: (N, classes)
        target: class numbers (N,)
    """
    from scipy.optimize import minimize_scalar  # takes a while to import

    output, labels = torch.from_numpy(probability).double(), torch.from_numpy(target)
    output = output.clamp(min=SMALLEST_NORMAL).log()

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(output / math.exp(log_temperature), labels))

    return math.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded").x)


def calibrated(probability: Tensor, temperature: float) -> Tensor:
    """The probabilities (N, classes) of outputs that are divided by `temperature`."""
    return (probability.clamp(min=SMALLEST_NORMAL).log() / temperature).softmax(-1)


def calibration_error(probability: np.ndarray, target: np.ndarray) -> float:
    """How far the likeliest class's probability is from the share of right answers, on average over
    15 bins of equal width: expected calibration error, Guo et al., arXiv:1706.04599.

    Args:
        probability: (N, classes)
        target: class numbers (N,)
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    values, labels = torch.from_numpy(probability), torch.from_numpy(target)
    settings = {"num_classes": probability.shape[1], "n_bins": BINS, "norm": "l1"}
    return float(multiclass_calibration_error(values, labels, **settings))


def decided(probability: Tensor, target: int, threshold: float) -> Tensor:
    """Class numbers (N,) of probabilities (N, classes): the target's where that reaches the
    threshold, else the likeliest other one.
    """
    others = probability.index_fill(1, torch.tensor([target]), -1.0).argmax(1)
    return others.masked_fill(probability[:, target] >= threshold, target)


def class_number(target: str, classes: list[str]) -> int:
    """The number of the class that must not be missed. Raises UserError if it is unknown."""
    if target not in classes:
        known = ", ".join(classes)
        raise UserError(f'inspection.target: "{target}" is not one of the classes {known}')
    return classes.index(target)
