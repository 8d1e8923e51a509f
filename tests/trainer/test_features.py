"""Training a head on stored features gives what training the whole network gives."""

import pytest
import torch

from tests.conftest import assert_same, last_checkpoint

MESSAGE = "features are computed once"


def test_stored_features_give_the_same_head(frozen, train, capsys):
    changes = {"trainer.ema_decay": 0.9, "trainer.epochs": 5}
    stored = train(frozen(changes))
    assert MESSAGE in capsys.readouterr().out
    whole = train(frozen({**changes, "trainer.reuse_features": False}))
    assert MESSAGE not in capsys.readouterr().out
    ours, reference = last_checkpoint(stored), last_checkpoint(whole)
    for part in (lambda s: s["state_dict"], lambda s: s["ema"]["state_dict"]):
        assert part(ours).keys() == part(reference).keys()
        for name, tensor in part(reference).items():
            torch.testing.assert_close(part(ours)[name], tensor, rtol=1e-4, atol=1e-6)
    assert ours["monitor_best"] == pytest.approx(reference["monitor_best"], rel=1e-4)
    assert ours["input"] == reference["input"]


def test_resumed_run_on_stored_features_equals_unbroken_run(frozen, train, resume):
    whole = train(frozen(), "--epochs", 4)
    half = train(frozen(), "--epochs", 2)
    resume(half, "--epochs", 4)
    assert_same(last_checkpoint(half)["state_dict"], last_checkpoint(whole)["state_dict"])


def test_check_of_a_network_with_a_frozen_backbone(frozen, train, capsys):
    train(frozen(), "--check")
    assert "check passed" in capsys.readouterr().out


NOISY = """
import torch
from data_loader.data_loaders import DigitsDataLoader
class Noisy(torch.utils.data.Dataset):
    def __init__(self, inner): self.inner, self.targets = inner, inner.targets
    def __len__(self): return len(self.inner)
    def __getitem__(self, i): return self.inner[i][0] + torch.rand(1), self.inner[i][1]
class Loader(DigitsDataLoader):
    def build_dataset(self, subset, augment):
        inner = super().build_dataset(subset, augment)
        return Noisy(inner) if augment else inner
"""


@pytest.mark.parametrize(
    "changes",
    [
        {"arch.type": "net.dropping"},
        {"arch.unfreeze_at": 2},
        {"arch.freeze": ["conv"]},
        {"data_loader.type": "noisy.Loader"},
    ],
    ids=["dropout", "unfrozen later", "by pattern", "augmented"],
)
def test_features_are_not_stored_if_that_changed_something(
    frozen, own_code, train, capsys, changes
):
    own_code("noisy", NOISY)
    train(frozen(changes))
    assert MESSAGE not in capsys.readouterr().out


def test_looking_for_randomness_draws_none(frozen, train):
    """A backbone with dropout trains the same, whether or not storing its features is tried."""
    runs = [train(frozen({"arch.type": "net.dropping", "trainer.reuse_features": reuse}))
            for reuse in (True, False)]  # fmt: skip
    one, two = (last_checkpoint(run)["state_dict"] for run in runs)
    assert_same(one, two)
