"""Product inspection: how sure must the network be that a piece is good, so that no more bad ones escape than may.

An escape is a piece of the target class ("NG") that passes, overkill a good piece that is sorted out. A piece is
called the target where the target's probability is at or above the threshold.
"""

import math
import os
from typing import Any

import numpy as np
from torch import nn

from trainer.evaluate import evaluate, progress
from trainer.predictions import Predictions
from trainer.start import loader_of
from utils import checkpoint
from utils.engine import Engine
from utils.errors import UserError


def find_threshold(config: Any, model: nn.Module, criterion: Any, engine: Engine) -> dict | None:
    """{"target", "threshold", "max_escape"} of the config's inspection section; None where there is none.

    The checkpoint's own where it has one, else chosen on the validation data and stored in the checkpoint: never on
    what is tested. Raises UserError where there are no validation data, or the target is no class of theirs.
    """
    state = checkpoint.load(config.resume)
    stored, section = state.get("inspection"), config.get("inspection")
    wanted = section and {"target": section["target"], "max_escape": section.get("max_escape", 0.0)}
    if wanted is None or (stored is not None and stored == stored | wanted):
        return stored
    loader = loader_of(config, "val")
    predictions = Predictions(state.get("classes"), loader.classes)
    evaluate(model, progress(loader, "validation"), criterion, {}, engine, predictions.add)
    if not predictions.is_classification:
        raise UserError("inspection: the network is no classifier")
    probability, is_target = target_of(predictions, wanted["target"])
    if not is_target.any():
        raise UserError(f'inspection.target: none of the validation samples is "{wanted["target"]}"')
    state["inspection"] = wanted | {"threshold": choose_threshold(probability[is_target], wanted["max_escape"])}
    modified = config.resume.stat().st_mtime
    checkpoint.save(state, config.resume)
    os.utime(config.resume, (modified, modified))  # "the newest run" means the one trained last
    return state["inspection"]


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


def inspect(predictions: Predictions, chosen: dict) -> dict:
    """Escape and overkill of the tested samples, at the threshold and for the most likely class.

    A rate is None where there are no samples it could be the share of.
    """
    probability, is_target = target_of(predictions, chosen["target"])
    most_likely = predictions.probabilities.argmax(1) == predictions.classes.index(chosen["target"])
    return {
        **chosen,
        "at_threshold": rates(probability >= chosen["threshold"], is_target),
        "at_most_likely": rates(most_likely, is_target),
    }


def rates(called: np.ndarray, is_target: np.ndarray) -> dict[str, float | None]:
    """Of samples `called` the target or not: the shares of the target's that were not, and of the others that were."""
    missed, falsely = ~called[is_target], called[~is_target]
    return {"escape": _share(missed), "overkill": _share(falsely)}


def _share(chosen: np.ndarray) -> float | None:
    return float(chosen.mean()) if len(chosen) else None
