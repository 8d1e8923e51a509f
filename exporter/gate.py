"""Decide whether a file in other numbers (int8, fp16) is good enough to replace the network."""

from dataclasses import dataclass

import numpy as np

from exporter.base_exporter import BaseExporter
from exporter.evaluator import Evaluation
from tester.inspection import costs_of
from trainer.decisions import choose_sure, class_number, find_temperature
from utils.errors import UserError

ESCAPES = "exporter.args.max_escape_increase"


@dataclass
class Verdict:
    """The result of a comparison.

    Attributes:
        passed: whether the file may be used
        report: the numbers, for export.json
        sentence: what changed, and what is allowed
        inspection: with the thresholds for this file; None without a section "inspection"
    """

    passed: bool
    report: dict
    sentence: str
    inspection: dict | None


def judge(
    before: Evaluation, after: Evaluation, exporter: BaseExporter, monitor: str, state: dict
) -> Verdict:
    """Compare a network before and after its numbers were changed, on the same samples.

    With `max_escape_increase` the target samples count that are missed when no more others are
    called target than before; else the accuracy, or what is monitored if there is none.

    Args:
        before: of the network as it was
        after: of the file
        exporter: its limits
        monitor: the rule by which the best network was chosen, "max val_accuracy"
        state: the checkpoint

    Raises UserError if the limit needs an inspection and there is none, or nothing is monitored.
    """
    is_classifier = before.targets is not None
    mode, metric = ("max", "accuracy") if is_classifier else monitored(monitor)
    if mode not in ("max", "min") or metric not in before.metrics:
        raise UserError(
            "the network is not a classifier, output (N, classes), so trainer.monitor must say by "
            'what to compare it: "max val_..." of a metric'
        )
    old, new, allowed = before.metrics[metric], after.metrics[metric], exporter.max_accuracy_drop
    drop = old - new if mode == "max" else (new - old) / abs(old)
    passed = drop <= allowed + 1e-9
    sentence = (
        f"{metric} changes from {old:.4f} to {new:.4f} on {after.samples} samples; "
        f"exporter.args.max_accuracy_drop allows {allowed:g} less" + " as a share" * (mode == "min")
    )
    report = {"metric": metric, "accuracy_drop": drop, "max_accuracy_drop": allowed}
    limit, classes, inspection = exporter.max_escape_increase, state["classes"], None
    if is_classifier:
        report["agreement"] = float((after.predicted == before.predicted).mean())
        if None not in (state.get("inspection"), classes):
            inspection, was = _at_same_overkill(before, after, state["inspection"], classes)
            now, target = inspection["validation"], inspection["target"]
            report["escapes"] = {"target": target, "before": was, "after": now}
    if limit is not None:
        if inspection is None:
            raise UserError(
                f"{ESCAPES}: the checkpoint has no threshold; test it first, with a section "
                '"inspection"'
            )
        increase = (now["missed"] - was["missed"]) / max(was["targets"], 1)
        passed = increase <= limit + 1e-9
        report |= {"escape_increase": increase, "max_escape_increase": limit}
        sentence = (
            f"of {now['targets']} {target} {was['missed']} were missed, now {now['missed']} (at "
            f"most {now['escape_bound']:.2%}), with {was['false']} and {now['false']} of "
            f"{now['others']} others called so; {ESCAPES} allows {limit:g} more"
        )
    return Verdict(passed, report | {"passed": passed}, sentence, inspection)


def monitored(rule: str) -> tuple[str, str]:
    """The ("max", metric) or ("min", metric) of such a rule; of "off" ("off", "")."""
    mode, _, name = rule.partition(" ")
    return mode, name.removeprefix("val_")


def _at_same_overkill(
    before: Evaluation, after: Evaluation, inspection: dict, classes: list[str]
) -> tuple[dict, dict]:
    """`inspection` with thresholds that call no more others target than those did before, and
    what those cost.
    """
    number = class_number(inspection["target"], classes)
    is_target = after.targets == number
    old, new = (each.probabilities[:, number] for each in (before, after))

    def moved(threshold: float, least: float = 0.0) -> float:
        false = int((old[~is_target] >= np.float32(threshold)).sum())
        return choose_sure(new, is_target, least, false)

    found = inspection | {"threshold": moved(inspection["threshold"])}
    if "sure_threshold" in inspection:
        found["sure_threshold"] = moved(inspection["sure_threshold"], found["threshold"])
    if "temperature" in inspection:
        found["temperature"] = find_temperature(after.probabilities, after.targets)
    found["validation"] = costs_of(found, new, is_target)
    return found, costs_of(inspection, old, is_target)
