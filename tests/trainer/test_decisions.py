"""The threshold of the target class, against a search through all thresholds."""

import numpy as np
import pytest

from trainer.decisions import choose_threshold, rates


@pytest.mark.parametrize("max_escape", [0.0, 0.05, 0.34, 0.9])
def test_threshold_is_the_largest_within_the_bound(max_escape):
    probability = np.random.default_rng(0).random(53).round(2)  # with ties
    threshold = choose_threshold(probability, max_escape)
    assert (probability < threshold).mean() <= max_escape
    for larger in [np.nextafter(threshold, 2), *probability[probability > threshold]]:
        assert (probability < larger).mean() > max_escape


def test_rates_without_samples_are_none():
    called, is_target = np.array([True, False]), np.array([True, True])
    assert rates(called, is_target) == {"escape": 0.5, "overkill": None}
    assert rates(called, ~is_target) == {"escape": None, "overkill": 0.5}
