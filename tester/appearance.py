"""Whether images as a whole look different from the validation images: darker, blurred, shifted."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

KEPT = 500  # validation images, evenly spaced
FEW = 10  # images of a class; with fewer nothing is compared
RARE = 0.01  # what is less probable by chance is reported
# measure -> how images with lower values look, and those with higher ones
WORDS = {
    "brightness": ("darker", "brighter"),
    "contrast": ("of less contrast", "of more contrast"),
    "sharpness": ("blurred", "sharper or noisier"),
    "horizontal position": ("shifted to the left", "shifted to the right"),
    "vertical position": ("shifted upwards", "shifted downwards"),
}


def appearance(images: Tensor) -> Tensor:
    """What WORDS names, of images (N, C, H, W): (N, 5), on the CPU.

    Mean; standard deviation; mean difference of neighbours in standard deviations; where the pixels
    lie that differ most from the mean, -1 to 1.
    """
    grey = images.float().mean(1)
    mean, contrast = grey.mean((1, 2)), grey.std((1, 2))
    edges = grey.diff(dim=1).abs().mean((1, 2)) + grey.diff(dim=2).abs().mean((1, 2))
    weights = (grey - mean[:, None, None]).abs() + 1e-6
    places = []
    for axis in (2, 1):
        along = weights.sum(3 - axis)
        position = torch.linspace(-1, 1, grey.shape[axis], device=grey.device)
        places.append((along * position).sum(1) / along.sum(1))
    return torch.stack([mean, contrast, edges / (contrast + 1e-3), *places], 1).cpu()


def differences(
    known: np.ndarray, found: np.ndarray, known_labels: Sequence[str], found_labels: Sequence[str]
) -> list[dict]:
    """How images differ from the validation images, class by class, where chance would not do it.

    Two-sided Kolmogorov-Smirnov tests, Bonferroni's correction for their number.

    Args:
        known: of validation images, (N, 5) from `appearance`
        found: of the images (M, 5)
        known_labels: the classes that they were decided to be of
        found_labels: likewise

    Returns {"class", "measure", "words", "validation" (median), "here" (median), "chance"} of each.
    """
    from scipy.stats import ks_2samp  # takes a second to import

    before, now = np.asarray(known_labels), np.asarray(found_labels)
    results = []
    for label in sorted({*known_labels} & {*found_labels}):
        ours, theirs = known[before == label], found[now == label]
        if min(len(ours), len(theirs)) >= FEW:
            for column, (measure, words) in enumerate(WORDS.items()):
                medians = np.median(ours[:, column]), np.median(theirs[:, column])
                results.append({
                    "class": label,
                    "measure": measure,
                    "words": words[int(medians[1] > medians[0])],
                    "validation": float(medians[0]),
                    "here": float(medians[1]),
                    "chance": float(ks_2samp(ours[:, column], theirs[:, column]).pvalue),
                })  # fmt: skip
    tests = len(results)
    for result in results:
        result["chance"] = min(1.0, result["chance"] * tests)
    return [result for result in results if result["chance"] < RARE]


def in_words(found: list[dict], name: str) -> list[str]:
    """A sentence for each class: "the images of OK are darker and blurred, compared with ..."."""
    labels = dict.fromkeys(result["class"] for result in found)
    return [
        f"the {name} called {label} are "
        + " and ".join(result["words"] for result in found if result["class"] == label)
        + ", compared with the validation samples"
        for label in labels
    ]
