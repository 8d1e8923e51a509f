"""Samples that are unlike the training data: each by its distance, all by how they look."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from model.heads import find_head
from tester.appearance import RARE, WORDS, differences, in_words
from tester.predictions import Predictions
from utils.errors import UserError

DIRECTIONS = 32
COMMON = 0.95  # share of validation samples within the limit
SMALLEST = 1e-6  # variance, as a part of the mean one


class Novelty(TypedDict, total=False):
    """What a checkpoint keeps, as plain data. An exported file has no tensors.

    The distance of the features that the network's head gets is Mahalanobis' to the nearest class
    (Lee et al., arXiv:1807.03888), with one covariance for all classes: its largest directions, and
    one variance for the rest.
    """

    appearance: list[list[float]]  # of validation images, see `tester.appearance`
    labels: list[str]  # what they were called
    means: Tensor  # (classes, features)
    directions: Tensor  # (directions, features)
    scales: Tensor  # (directions,): standard deviations
    rest: float  # standard deviation of the other directions
    limit: float  # the `rank`-th smallest distance of `samples` validation samples
    rank: int
    samples: int


class Distance(nn.Module):
    """The distance of features (N, D, ...), as a multiple of the limit (N,)."""

    def __init__(self, novelty: Novelty):
        super().__init__()
        for name in ("means", "directions", "scales"):
            self.register_buffer(name, novelty[name].float())
        self.rest, self.limit = novelty["rest"], novelty["limit"]

    def forward(self, features: Tensor) -> Tensor:
        features = pooled(features)
        if features.shape[1] != self.means.shape[1]:
            raise UserError(
                f"the checkpoint's novelty is for {self.means.shape[1]} features, the network has "
                f"{features.shape[1]}"
            )
        offsets = features[:, None] - self.means
        along = offsets @ self.directions.T
        across = offsets - along @ self.directions
        squares = (along / self.scales).square().sum(2) + (across / self.rest).square().sum(2)
        size = self.means.shape[1]
        return (squares.amin(1) / size).sqrt() / self.limit


def pooled(features: Tensor) -> Tensor:
    """Features (N, D) of a head's input (N, D), (N, D, H, W) or (N, tokens, D)."""
    if features.ndim == 4:
        return features.mean((2, 3))
    return features.mean(1) if features.ndim == 3 else features


def fit(features: Tensor, targets: Tensor) -> Novelty:
    """The measure for features (N, D) of training samples of these classes (N,); no limit yet."""
    features = features.double()
    present, numbers = targets.unique(return_inverse=True)
    means = torch.stack([features[numbers == n].mean(0) for n in range(len(present))])
    offsets = features - means[numbers]
    freedom = max(1, len(features) - len(present))
    _, scales, directions = torch.linalg.svd(offsets / math.sqrt(freedom), full_matrices=False)
    variances = scales.square()
    floor = SMALLEST * max(variances.sum().item() / features.shape[1], SMALLEST)
    kept = min(DIRECTIONS, len(variances) // 2)
    others = max(1, features.shape[1] - kept)
    rest = max(variances[kept:].sum().item() / others, floor)
    return {
        "means": means.float(),
        "directions": directions[:kept].float(),
        "scales": variances[:kept].clamp(min=rest).sqrt().float(),
        "rest": math.sqrt(rest),
        "limit": 1.0,
    }


def with_limit(novelty: Novelty, distances: np.ndarray) -> Novelty:
    """The measure with a limit, by the distances of validation samples (N,)."""
    count = len(distances)
    rank = math.ceil(COMMON * count)
    limit = max(float(np.sort(distances)[rank - 1]), SMALLEST)
    return novelty | {"limit": novelty["limit"] * limit, "rank": rank, "samples": count}


def chance(beyond: int, count: int, rank: int, samples: int) -> float:
    """The probability that at least `beyond` of `count` samples are beyond the limit, if they are
    like the validation samples: their ranks among these are then random.
    """
    from scipy.stats import betabinom  # takes a second to import

    return float(betabinom(count, samples + 1 - rank, rank).sf(beyond - 1))


def compare(predictions: Predictions, novelty: Novelty, name: str) -> dict:
    """Warn if more samples are beyond the limit than chance explains, or if they look different.

    `name` says what they are ("images"). Returns {"beyond", "n", "expected", "chance"} if there are
    distances, and "differences" if they are images.
    """
    found, logger = {}, logging.getLogger("test")
    if predictions.distances is not None:
        count, beyond = len(predictions.distances), int((predictions.distances > 1).sum())
        rank, samples = novelty["rank"], novelty["samples"]
        expected = count * (samples + 1 - rank) / (samples + 1)
        found = {"beyond": beyond, "n": count, "expected": expected}
        found["chance"] = chance(beyond, count, rank, samples)
        if found["chance"] >= RARE:
            logger.info(
                f"{beyond} of {count} {name} are less like the training data than {COMMON:.0%} of "
                f"the validation samples; {expected:.1f} were to be expected"
            )
        else:
            logger.warning(
                f"{beyond} of {count} {name} are less like the training data than {COMMON:.0%} of "
                f"the validation samples, {expected:.1f} were to be expected: are these other "
                "parts?"
            )
    if predictions.appearance is not None and "appearance" in novelty:
        labels = np.array(predictions.classes)[predictions.predicted].tolist()
        known = np.array(novelty["appearance"], np.float32).reshape(-1, len(WORDS))
        own = differences(known, predictions.appearance, novelty["labels"], labels)
        found["differences"] = own
        for sentence in in_words(own, name):
            logger.warning(f"{sentence}: another camera, other light, other parts?")
    return found


@contextlib.contextmanager
def before_head(
    network: nn.Module, measure: Callable[[Tensor], Tensor] | None = None
) -> Iterator[list[Tensor]]:
    """Within this, each call of the network appends what its head gets, or its `measure`."""
    found: list[Tensor] = []
    head = network.get_submodule(find_head(network))

    def add(module: nn.Module, args: tuple) -> None:
        found.append(measure(args[0].detach().float()) if measure else args[0])

    with head.register_forward_pre_hook(add):
        yield found


@contextlib.contextmanager
def watched(network: nn.Module, novelty: Novelty | None) -> Iterator[list[Tensor]]:
    """Within this, each call of the network appends the distances of its samples (N,); nothing
    without a measure. An exported file may know its own.
    """
    found: list[Tensor] = []
    if getattr(network, "is_exported", False):
        with network.register_forward_hook(lambda module, *_: found.extend(module.distances)):
            yield found
    elif novelty is not None and "means" in novelty:
        measure = Distance(novelty).to(next(network.parameters()).device)
        with before_head(network, measure) as found:
            yield found
    else:
        yield found
