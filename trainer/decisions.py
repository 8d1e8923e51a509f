"""Decisions of a classifier: the threshold for the class that must not be missed, and its cost."""

import math

import numpy as np

from utils.errors import UserError


def choose_threshold(probability: np.ndarray, max_escape: float) -> float:
    """The largest threshold that misses at most a share `max_escape` of the target class.

    Args:
        probability: that of the target class, for samples of the target class (N,)
        max_escape: the largest share of them that may lie below the threshold
    """
    may_escape = math.floor(len(probability) * max_escape + 1e-9)
    return float(np.sort(probability)[may_escape])


def rates(called: np.ndarray, is_target: np.ndarray) -> dict[str, float | None]:
    """{"escape", "overkill"}: target samples not `called` target, other samples called target.

    Each as a share of its samples; None if there are none.
    """
    wrong = {"escape": ~called[is_target], "overkill": called[~is_target]}
    return {name: float(part.mean()) if len(part) else None for name, part in wrong.items()}


def class_number(target: str, classes: list[str]) -> int:
    """The number of the class that must not be missed. Raises UserError if it is unknown."""
    if target not in classes:
        known = ", ".join(classes)
        raise UserError(f'inspection.target: "{target}" is not one of the classes {known}')
    return classes.index(target)
