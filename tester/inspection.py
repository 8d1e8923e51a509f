"""Product inspection: the threshold of the class that must not be missed, and what it costs."""

from tester.predictions import Predictions
from tester.trained import Test, build_eval_loader
from trainer.decisions import (
    CONFIDENCE,
    choose_threshold,
    escapes_allowed,
    rate_in_words,
    rates,
    samples_needed,
)
from utils import checkpoint
from utils.errors import UserError


def find_threshold(test: Test) -> dict | None:
    """The config's section "inspection" with "threshold", and the `rates` on the validation data
    that it was chosen on, as "validation"; None without the section.

    Taken from the checkpoint if it has one for this section. Otherwise chosen on the validation
    data, never on the tested data, and stored in the checkpoint. Raises UserError if there is no
    validation data or the target is not one of its classes.
    """
    section, stored = test.config.get("inspection"), test.trained.get("inspection")
    wanted = section and {"max_escape": 0.0} | section
    if wanted is None or (stored is not None and stored == stored | wanted):
        return stored
    predictions, *_ = test.predict(build_eval_loader(test.config, "val"), {}, "validation")
    if not predictions.is_classification:
        raise UserError("inspection: the network is not a classifier")
    target = wanted["target"]
    probability, is_target = predictions.for_class(target)
    if not is_target.any():
        raise UserError(f'inspection.target: none of the validation samples is "{target}"')
    count, allowed = int(is_target.sum()), escapes_allowed(int(is_target.sum()), wanted)
    if allowed < 0:
        bound = wanted["max_escape_bound"]
        test.config.get_logger("test").warning(
            f"inspection.max_escape_bound: {count} {target} in the validation data cannot show "
            f"that at most {bound:.2%} are missed; that takes "
            f"{samples_needed(bound, wanted.get('confidence', CONFIDENCE))}, none of them missed"
        )
    threshold = choose_threshold(probability, is_target, max(0, allowed))
    costs = rates(probability >= threshold, is_target, wanted.get("confidence", CONFIDENCE))
    wanted |= {"threshold": threshold, "validation": costs}
    checkpoint.amend(test.config.resume, test.trained, inspection=wanted)
    return wanted


def inspect(predictions: Predictions, inspection: dict | None) -> dict | None:
    """`inspection` with the `rates` of the tested samples, at its threshold and if the likeliest
    class decides; None without one.
    """
    if inspection is None:
        return None
    target = inspection["target"]
    probability, is_target = predictions.for_class(target)
    likeliest = predictions.probabilities.argmax(1) == predictions.classes.index(target)
    rules = {"at_threshold": probability >= inspection["threshold"], "at_likeliest": likeliest}
    confidence = inspection.get("confidence", CONFIDENCE)
    return inspection | {name: rates(rule, is_target, confidence) for name, rule in rules.items()}


def costs_in_words(inspection: dict) -> dict[str, tuple[str, str]]:
    """Rule -> what is missed, what is falsely called the target, each with its bound."""
    at = f"p({inspection['target']}) >= {inspection['threshold']:.4g}"
    rules = {
        at: inspection["at_threshold"],
        "the likeliest class": inspection["at_likeliest"],
        f"{at}, on the validation data": inspection.get("validation"),  # unknown of old ones
    }
    return {
        rule: (
            rate_in_words(costs["missed"], costs["targets"], costs["escape_bound"]),
            rate_in_words(costs["false"], costs["others"], costs["overkill_bound"]),
        )
        for rule, costs in rules.items()
        if costs
    }
