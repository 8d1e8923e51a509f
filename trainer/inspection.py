"""Product inspection: how sure must the network be that a piece is good, so that no more bad ones escape than may.

An escape is a piece of the target class ("NG") that passes, overkill a good piece that is sorted out. A piece is
called the target where the target's probability is at or above the threshold.
"""

import math
from typing import Any

import numpy as np
from torch import nn

from trainer.evaluate import evaluate, progress
from trainer.predictions import Predictions
from trainer.start import loader_of
from utils import checkpoint
from utils.engine import Engine
from utils.errors import UserError


def find_threshold(config: Any, trained: dict, model: nn.Module, criterion: Any, engine: Engine) -> dict | None:
    """{"target", "threshold", "max_escape"} of the config's inspection section; None where there is none.

    That of the checkpoint `trained` where it has one, else chosen on the validation data, never on what is tested, and
    stored in the checkpoint. Raises UserError where there are no validation data, or the target is no class of theirs.
    """
    stored, section = trained.get("inspection"), config.get("inspection")
    wanted = section and {"target": section["target"], "max_escape": section.get("max_escape", 0.0)}
    if wanted is None or (stored is not None and stored == stored | wanted):
        return stored
    loader = loader_of(config, "val")
    predictions = Predictions(trained.get("classes"), loader.classes)
    evaluate(model, progress(loader, "validation"), criterion, {}, engine, predictions.add)
    if not predictions.is_classification:
        raise UserError("inspection: the network is no classifier")
    probability, is_target = target_of(predictions, wanted["target"])
    if not is_target.any():
        raise UserError(f'inspection.target: none of the validation samples is "{wanted["target"]}"')
    chosen = wanted | {"threshold": choose_threshold(probability[is_target], wanted["max_escape"])}
    checkpoint.amend(config.resume, trained, inspection=chosen)
    return chosen


def target_of(predictions: Predictions, target: str) -> tuple[np.ndarray, np.ndarray]:
    """Each sample's probability of `target`, and whether it is of that class. Raises UserError."""
    if target not in predictions.classes:
        raise UserError(f'inspection.target: "{target}" is none of the classes {", ".join(predictions.classes)}')
    number = predictions.classes.index(target)
    return predictions.probabilities[:, number], predictions.targets == number


def choose_threshold(probability: np.ndarray, max_escape: float) -> float:
    """The largest threshold below which at most the share `max_escape` of these samples of the target class lie."""
    may_escape = math.floor(len(probability) * max_escape + 1e-9)
    return float(np.sort(probability)[may_escape])


def inspect(predictions: Predictions, chosen: dict | None) -> dict | None:
    """Escape and overkill of the tested samples, at the threshold `chosen` and by the likeliest class; None without one.

    A rate is None where there are no samples it could be the share of.
    """
    if chosen is None:
        return None
    probability, is_target = target_of(predictions, chosen["target"])
    likeliest = predictions.probabilities.argmax(1) == predictions.classes.index(chosen["target"])
    return {
        **chosen,
        "at_threshold": rates(probability >= chosen["threshold"], is_target),
        "at_likeliest": rates(likeliest, is_target),
    }


def rates(called: np.ndarray, is_target: np.ndarray) -> dict[str, float | None]:
    """Of samples `called` the target or not: the shares of the target's that were not, and of the others that were."""
    missed, falsely = ~called[is_target], called[~is_target]
    return {"escape": _share(missed), "overkill": _share(falsely)}


def _share(chosen: np.ndarray) -> float | None:
    return float(chosen.mean()) if len(chosen) else None
