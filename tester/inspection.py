"""Product inspection: the threshold of the class that must not be missed, its cost, and what the
training data looks like.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler

from base.base_data_loader import ChosenBatches
from base.samples import spaced
from tester.appearance import KEPT
from tester.language import ENGLISH, Translate
from tester.novelty import Novelty, before_head, fit, pooled, with_limit
from tester.predictions import Predictions
from tester.trained import Test, build_eval_loader
from trainer import decisions
from trainer.decisions import CONFIDENCE
from trainer.evaluate import evaluate
from utils import checkpoint
from utils.engine.engine import unwrap
from utils.errors import UserError

SAMPLES = 2000  # of the training data, evenly spaced, for the measure of distance


def find_threshold(test: Test) -> dict | None:
    """The config's section "inspection" with "threshold", the "temperature" that calibrates the
    probabilities, and the `rates` on the validation data that these were chosen on, as
    "validation"; None without the section. With max_overkill also "sure_threshold", from which on
    no person needs to look at a sample.

    Taken from the checkpoint if it has one for this section. Otherwise chosen on the validation
    data, never on the tested data, and stored in the checkpoint. Raises UserError if there is no
    validation data or the target is not one of its classes.
    """
    section, stored = test.config.get("inspection"), test.trained.get("inspection")
    wanted = section and {"max_escape": 0.0} | section
    if wanted is None or (stored is not None and stored == stored | wanted):
        return stored
    predictions = test.predict(build_eval_loader(test.config, "val"), {}, "validation").predictions
    if not predictions.is_classification:
        raise UserError("inspection: the network is not a classifier")
    wanted = chosen(test, wanted, predictions)
    checkpoint.amend(test.config.resume, test.trained, inspection=wanted)
    return wanted


def chosen(test: Test, section: dict, predictions: Predictions) -> dict:
    """The section "inspection" with the thresholds that these predictions ask for, their rates and
    the temperature. Raises UserError if none of the samples is of the target class.
    """
    wanted = {"max_escape": 0.0} | section
    target = wanted["target"]
    probability, is_target = predictions.for_class(target)
    count = int(is_target.sum())
    if count == 0:
        raise UserError(f'inspection.target: none of the samples is "{target}"')
    allowed = decisions.escapes_allowed(count, wanted)
    if sentence := decisions.too_few(target, count, wanted):
        test.config.get_logger("test").warning(sentence)
    threshold = decisions.choose_threshold(probability, is_target, max(0, allowed))
    wanted["threshold"] = threshold
    if (most := wanted.get("max_overkill")) is not None:
        may_be_false = int(most * (~is_target).sum() + 1e-9)
        sure = decisions.choose_sure(probability, is_target, threshold, may_be_false)
        wanted["sure_threshold"] = sure
    wanted["validation"] = costs_of(wanted, probability, is_target)
    temperature = decisions.find_temperature(predictions.probabilities, predictions.targets)
    wanted["temperature"] = temperature
    return wanted


def find_novelty(test: Test, inspection: dict | None) -> Novelty | None:
    """What is known of the tested network's data: the checkpoint's, or found on training and
    validation samples and stored there. None without `inspection`, for anything but a classifier,
    and for an exported file that has none.
    """
    stored, network = test.trained.get("novelty"), unwrap(test.model)
    wanted = inspection is not None and test.task.classifies
    if stored is not None or not wanted or getattr(network, "is_exported", False):
        return stored
    novelty = _measure(test, network)
    loader = build_eval_loader(test.config, "val")
    predictions = test.predict(loader, {}, "validation", inspection, novelty).predictions
    distances = predictions.distances
    novelty = with_limit(novelty, distances) if distances is not None else None
    if predictions.appearance is not None:
        kept = spaced(len(loader.dataset), KEPT)
        labels = np.array(predictions.classes)[predictions.predicted]
        rows = predictions.appearance[kept].round(5).tolist()
        novelty = (novelty or {}) | {"appearance": rows, "labels": labels[kept].tolist()}
    if novelty:
        checkpoint.amend(test.config.resume, test.trained, novelty=novelty)
    return novelty


def _measure(test: Test, network: nn.Module) -> Novelty | None:
    """The measure of distance, without a limit; None if there is no training data."""
    try:
        training = build_eval_loader(test.config, "train")
        positions = spaced(len(training.dataset), SAMPLES)
        chunks = BatchSampler(positions, training.batch_size, drop_last=False)
        batches = list(ChosenBatches(training, [*chunks]))
    except UserError as error:
        test.config.get_logger("test").info(f"without training data there is no distance: {error}")
        return None
    targets: list[Tensor] = []
    with before_head(network, pooled) as found:
        settings = test.task, {}, test.engine
        evaluate(test.model, batches, *settings, lambda step: targets.append(step.target.cpu()))
    features = torch.cat(found).cpu()
    if len(features) != sum(map(len, targets)):  # called more than once for a batch
        return None
    return fit(features, torch.cat(targets))


def inspect_predictions(predictions: Predictions, inspection: dict | None) -> dict | None:
    """`inspection` with the `rates` of the tested samples, at its threshold and if the likeliest
    class decides, and the expected "calibration_error" of their probabilities; None without one.
    """
    if inspection is None:
        return None
    probability, is_target = predictions.for_class(inspection["target"])
    target = predictions.classes.index(inspection["target"])
    likeliest = predictions.probabilities.argmax(1) == target
    confidence = inspection.get("confidence", CONFIDENCE)
    found = inspection | {
        "at_threshold": costs_of(inspection, probability, is_target),
        "at_likeliest": decisions.rates(likeliest, is_target, confidence),
    }
    if (temperature := inspection.get("temperature")) is not None:  # unknown of old ones
        targets, before = predictions.targets, predictions.probabilities
        after = decisions.calibrated(torch.from_numpy(before), temperature).numpy()
        found["calibration_error"] = {
            "calibrated": decisions.calibration_error(after, targets),
            "before": decisions.calibration_error(before, targets),
        }
    return found


def costs_of(inspection: dict, probability: np.ndarray, is_target: np.ndarray) -> dict:
    """The `rates` at an inspection's thresholds, from each sample's probability of the target and
    whether it is one (N,).
    """
    threshold, sure = inspection["threshold"], inspection.get("sure_threshold")
    confidence = inspection.get("confidence", CONFIDENCE)
    if sure is None:
        return decisions.rates(probability >= threshold, is_target, confidence)
    return decisions.with_unsure(probability, is_target, threshold, sure, confidence)


def costs_in_words(
    inspection: dict, t: Translate = ENGLISH, name: str | None = None
) -> dict[str, dict[str, str]]:
    """Rule -> what is missed, what is falsely called the target, how many are unsure if a person
    looks at some, each with its bound. `name` is what the target is called, if not by its own.
    """
    name = name or inspection["target"]
    at = f"p({name}) >= {inspection['threshold']:.4g}"
    if "sure_threshold" in inspection:
        at += t(", sure from {value}", value=f"{inspection['sure_threshold']:.4g}")
    rules = {
        at: inspection["at_threshold"],
        t("the likeliest class"): inspection["at_likeliest"],
        # unknown of old ones
        t("{rule}, on the validation data", rule=at): inspection.get("validation"),
    }
    words: dict[str, dict[str, str]] = {}
    for rule, costs in rules.items():
        if costs:
            missed, false = t("missed {target}", target=name), t("false {target}", target=name)
            words[rule] = {
                missed: _in_words(costs, "missed", "targets", "escape", t),
                false: _in_words(costs, "false", "others", "overkill", t),
            }
            if "unsure" in costs:
                costs = costs | {"n": costs["targets"] + costs["others"]}
                words[rule][t("unsure")] = _in_words(costs, "unsure", "n", "unsure", t)
    return words


def _in_words(costs: dict, count: str, of: str, rate: str, t: Translate) -> str:
    """A rate with what it rests on: "0 of 5 (0.00%), at most 45.07%"."""
    if costs[of] == 0:
        return t("no samples")
    share, bound = f"{costs[count] / costs[of]:.2%}", f"{costs[f'{rate}_bound']:.2%}"
    return t(
        "{count} of {n} ({share}), at most {bound}",
        count=costs[count], n=costs[of], share=share, bound=bound,
    )  # fmt: skip
