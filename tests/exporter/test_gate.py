"""Whether a file in other numbers may take the network's place: by accuracy, or by what escapes."""

import numpy as np
import pytest

from exporter.evaluator import Evaluation
from exporter.gate import judge
from utils.errors import UserError

CLASSES = ["NG", "OK"]
INSPECTION = {"target": "NG", "threshold": 0.5}


class Limits:
    def __init__(self, drop=0.01, increase=None):
        self.max_accuracy_drop, self.max_escape_increase = drop, increase


def evaluation(probability, is_target):
    probabilities = np.stack([probability, 1 - probability], 1).astype(np.float32)
    targets = np.where(is_target, 0, 1)
    accuracy = float((probabilities.argmax(1) == targets).mean())
    return Evaluation({"accuracy": accuracy}, len(targets), {}, probabilities, targets)


def verdict(before, after, is_target, limits, inspection=INSPECTION):
    pair = evaluation(np.array(before), is_target), evaluation(np.array(after), is_target)
    state = {"classes": CLASSES, "inspection": inspection}
    return judge(*pair, limits, "off", state)


def fewest_missed(after, is_target, false):
    """By every threshold there is: how many are missed if at most `false` others are called NG."""
    return min(
        int((after[is_target] < threshold).sum())
        for threshold in [*after, 2]
        if (after[~is_target] >= threshold).sum() <= false
    )


@pytest.mark.parametrize("seed", range(20))
def test_escapes_are_counted_at_the_same_overkill(seed):
    generator = np.random.default_rng(seed)
    is_target = generator.random(200) < 0.2
    before = (is_target * 0.4 + generator.random(200) * 0.6).round(3)
    after = (before + generator.normal(0, 0.05, 200)).clip(0.001, 0.999).round(3)
    found = verdict(before, after, is_target, Limits(increase=1.0))
    false = int((before[~is_target].astype(np.float32) >= 0.5).sum())
    was, now = found.report["escapes"]["before"], found.report["escapes"]["after"]
    assert was["missed"] == (before[is_target].astype(np.float32) < 0.5).sum()
    assert was["false"] == false >= now["false"]
    assert now["missed"] == fewest_missed(after.astype(np.float32), is_target, false)
    threshold = found.inspection["threshold"]
    assert now["missed"] == (after[is_target].astype(np.float32) < np.float32(threshold)).sum()


def test_accuracy_hides_a_rare_class_and_the_escapes_do_not():
    is_target = np.arange(400) < 10
    before = np.where(is_target, 0.9, 0.1)
    after = np.where(np.arange(400) < 4, 0.05, before)  # 4 of 10 NG pass now
    by_accuracy = verdict(before, after, is_target, Limits(drop=0.01))
    assert by_accuracy.passed
    by_escapes = verdict(before, after, is_target, Limits(increase=0.1))
    assert not by_escapes.passed
    assert by_escapes.report["escape_increase"] == pytest.approx(0.4)
    assert "of 10 NG 0 were missed, now 4" in by_escapes.sentence
    assert verdict(before, after, is_target, Limits(increase=0.4)).passed


def test_escapes_need_a_threshold():
    is_target = np.arange(10) < 5
    probability = np.where(is_target, 0.9, 0.1)
    with pytest.raises(UserError, match="max_escape_increase: the checkpoint has no threshold"):
        verdict(probability, probability, is_target, Limits(increase=0.0), inspection=None)
