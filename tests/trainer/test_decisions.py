"""The threshold of the target class, and what the counts leave possible, against scipy and
simulated factories.
"""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from trainer.decisions import (
    choose_sure,
    choose_threshold,
    decided,
    escapes_allowed,
    rates,
    samples_needed,
    upper_bound,
)


def draw(generator, targets, others, overlap=1.0):
    """Probabilities of the target class, as a network gives them, and whose they are."""
    odds = np.concatenate([generator.normal(3, 2, targets), generator.normal(-4, 2, others)])
    probability = (1 / (1 + np.exp(-overlap * odds))).astype(np.float32)
    return probability, np.arange(targets + others) < targets


@pytest.mark.parametrize("allowed", [0, 2, 17, 52])
@pytest.mark.parametrize("digits", [2, 7])  # with ties, and without
def test_threshold_is_the_largest_one_allowed_with_a_margin(allowed, digits):
    probability, is_target = draw(np.random.default_rng(0), 53, 200)
    probability = probability.round(digits)
    threshold = choose_threshold(probability, is_target, allowed)
    missed = (probability[is_target] < threshold).sum()
    assert missed <= allowed
    caught = probability[probability >= threshold].min()
    assert (probability[is_target] <= caught).sum() > allowed  # a larger one would miss more
    below = probability[probability < threshold]
    if len(below) and caught > below.max() + 1e-6:
        odds = [np.log(p / (1 - p)) for p in (caught, threshold, below.max()) if 0 < p < 1]
        share = 53 / 253
        wanted = share * (odds[0] - odds[-1])
        assert len(odds) < 3 or odds[1] - odds[2] == pytest.approx(wanted, abs=1e-2)


def test_threshold_between_separate_classes_and_without_others():
    probability = np.array([0.9, 0.99, 0.1, 0.01], np.float32)
    is_target = np.array([True, True, False, False])
    assert choose_threshold(probability, is_target, 0) == pytest.approx(0.5)
    few = np.array([0.9, 0.1, 0.01, 0.01, 0.01], np.float32)  # and many others: nearer to these
    threshold = choose_threshold(few, np.arange(5) < 1, 0)
    assert np.log(threshold / (1 - threshold)) == pytest.approx(np.log(9) * (2 * 0.2 - 1), abs=1e-5)
    assert choose_threshold(1 - few, np.arange(5) > 0, 0) == pytest.approx(0.5)
    only = choose_threshold(probability[:2], is_target[:2], 0)
    assert only == pytest.approx(0.9)
    certain = np.array([1.0, 0.0], np.float32)
    assert 0 < choose_threshold(certain, np.array([True, False]), 0) <= 1


@pytest.mark.parametrize("allowed", [0, 3, 20, 200])
def test_sure_threshold_lets_so_many_others_pass_as_targets(allowed):
    probability, is_target = draw(np.random.default_rng(0), 53, 200)
    threshold = choose_threshold(probability, is_target, 0)
    sure = choose_sure(probability, is_target, threshold, allowed)
    false = (probability[~is_target] >= sure).sum()
    assert sure >= threshold
    assert false <= allowed
    assert sure == threshold or false == allowed  # a lower one would let more pass
    ties = np.full(50, 0.5, np.float32)
    assert choose_sure(ties, np.arange(50) < 10, 0.5, 0) > 0.5


@pytest.mark.parametrize(("count", "of"), [(0, 5), (1, 5), (5, 5), (3, 100), (0, 299)])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_bound_is_that_of_clopper_and_pearson(count, of, confidence):
    interval = binomtest(count, of).proportion_ci(2 * confidence - 1, method="exact")
    assert upper_bound(count, of, confidence) == pytest.approx(interval.high)


def test_samples_needed_for_a_bound():
    assert samples_needed(0.01) == 299
    for bound in (0.005, 0.01, 0.2):
        count = samples_needed(bound)
        assert upper_bound(0, count) <= bound < upper_bound(0, count - 1)


def test_how_many_may_escape():
    assert escapes_allowed(100, {"max_escape": 0.05}) == 5
    assert escapes_allowed(100, {"max_escape": 0.29}) == 29  # not 28 by rounding
    assert escapes_allowed(100, {}) == 0
    assert escapes_allowed(298, {"max_escape_bound": 0.01}) == -1
    assert escapes_allowed(299, {"max_escape_bound": 0.01}) == 0
    count = escapes_allowed(1000, {"max_escape_bound": 0.05, "confidence": 0.9})
    assert upper_bound(count, 1000, 0.9) <= 0.05 < upper_bound(count + 1, 1000, 0.9)


def test_rates_carry_their_counts_and_are_none_without_samples():
    called, is_target = np.array([True, False]), np.array([True, True])
    assert rates(called, is_target) == {
        "escape": 0.5, "missed": 1, "targets": 2, "escape_bound": pytest.approx(0.9747, abs=1e-4),
        "overkill": None, "false": 0, "others": 0, "overkill_bound": None,
    }  # fmt: skip
    assert rates(called, ~is_target)["escape"] is None


def test_decision_takes_the_likeliest_of_the_others():
    probability = torch.tensor([[0.3, 0.6, 0.1], [0.2, 0.3, 0.5], [0.6, 0.1, 0.3]])
    assert decided(probability, 0, 0.3).tolist() == [0, 2, 0]
    assert decided(probability, 2, 0.9).tolist() == [1, 1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("targets", [5, 10, 20, 50, 100, 200])
@pytest.mark.parametrize("share", [0.0, 0.05])
def test_stated_bound_holds_in_simulated_factories(targets, share):
    """Of 2,000 factories with so many NG parts, in how many the truth is within the bound."""
    generator, draws = np.random.default_rng(targets), 2000
    pool, is_target = draw(generator, 100_000, 0)[0], None
    held = 0
    for _ in range(draws):
        seen = generator.choice(pool, targets)
        others = draw(generator, 0, 300)[0]
        probability = np.concatenate([seen, others])
        is_target = np.arange(len(probability)) < targets
        threshold = choose_threshold(
            probability, is_target, escapes_allowed(targets, {"max_escape": share})
        )
        bound = rates(probability >= threshold, is_target)["escape_bound"]
        held += (pool < threshold).mean() <= bound
    print(f"{targets} NG, max_escape {share}: holds in {held / draws:.1%}")
    assert held / draws >= 0.95 - 2 * (0.95 * 0.05 / draws) ** 0.5
