"""Product inspection: the threshold of the class that must not be missed.

An escape is a sample of the target class ("NG") that passes; overkill is a good sample that is
wrongly rejected. A sample is called the target if the target's probability is at least the
threshold.
"""

from tester.predictions import Predictions
from tester.trained import Test, build_eval_loader
from trainer.decisions import choose_threshold, rates
from utils import checkpoint
from utils.errors import UserError


def find_threshold(test: Test) -> dict | None:
    """{"target", "max_escape", "threshold"} for the config's section "inspection"; None without it.

    Taken from the checkpoint if it has one for this section. Otherwise chosen on the validation
    data, never on the tested data, and stored in the checkpoint. Raises UserError if there is no
    validation data or the target is not one of its classes.
    """
    section, stored = test.config.get("inspection"), test.trained.get("inspection")
    wanted = section and section | {"max_escape": section.get("max_escape", 0.0)}
    if wanted is None or (stored is not None and stored == stored | wanted):
        return stored
    predictions, *_ = test.predict(build_eval_loader(test.config, "val"), {}, "validation")
    if not predictions.is_classification:
        raise UserError("inspection: the network is not a classifier")
    target = wanted["target"]
    probability, is_target = predictions.for_class(target)
    if not is_target.any():
        raise UserError(f'inspection.target: none of the validation samples is "{target}"')
    wanted |= {"threshold": choose_threshold(probability[is_target], wanted["max_escape"])}
    checkpoint.amend(test.config.resume, test.trained, inspection=wanted)
    return wanted


def inspect(predictions: Predictions, inspection: dict | None) -> dict | None:
    """`inspection` with the tested samples' escape and overkill, at its threshold and if the
    likeliest class decides; None without one. A rate is None if there are no samples for it.
    """
    if inspection is None:
        return None
    target = inspection["target"]
    probability, is_target = predictions.for_class(target)
    likeliest = predictions.predicted == predictions.classes.index(target)
    return {
        **inspection,
        "at_threshold": rates(probability >= inspection["threshold"], is_target),
        "at_likeliest": rates(likeliest, is_target),
    }
