"""Training a head on stored features gives what training the whole network gives."""

import pytest
import torch

from tests.conftest import assert_same, build, last_checkpoint
from trainer.features import with_features
from utils.engine import distributed

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


NOISY_HEAD = """
import os, signal
from collections import OrderedDict
from torch import nn
from tests.conftest import SMALL_NETWORK
from trainer import Trainer
exec(SMALL_NETWORK)
def headed(num_classes=10):
    network = small(num_classes)
    network.head = nn.Sequential(nn.Dropout(), nn.Linear(128, num_classes))
    return network
class Stopping(Trainer):
    def after_backward(self):
        if self.step == 4 and self.epoch == 1 and "STOP" in os.environ:
            signal.raise_signal(signal.SIGTERM)
"""


def test_run_stopped_within_an_epoch_goes_on_with_the_same_dropout(
    frozen, own_code, train, resume, monkeypatch, capsys
):
    """Computing the features again must draw no number."""
    own_code("headed", NOISY_HEAD)
    config = frozen({"arch.type": "headed.headed", "trainer.type": "headed.Stopping"})
    whole = train(config)
    assert MESSAGE in capsys.readouterr().out
    monkeypatch.setenv("STOP", "1")
    half = train(config, code=143)
    assert last_checkpoint(half)["trainer"]["step"] == 5
    monkeypatch.delenv("STOP")
    resume(half)
    assert_same(last_checkpoint(half)["state_dict"], last_checkpoint(whole)["state_dict"])


def test_each_process_computes_a_part_of_the_features(frozen, monkeypatch):
    trainer = build(frozen())
    network, loader, engine = trainer.model, trainer.data_loader, trainer.engine
    alone = with_features(network, "head", loader, engine)
    served, parts = [], []
    inner = type(loader.samples).__getitems__
    monkeypatch.setattr(type(loader.samples), "__getitems__",
                        lambda samples, i: served.extend(i) or inner(samples, i))  # fmt: skip

    def gather(own):
        parts.append(own)
        return parts

    monkeypatch.setattr(distributed, "all_gather", gather)
    count = len(loader.dataset)
    for part in (slice(0, 500), slice(500, count)):
        shares = {count: part}
        monkeypatch.setattr(distributed, "rank_slice", lambda n, s=shares: s.get(n, slice(n)))
        both = with_features(network, "head", loader, engine)
    assert len(served) == count
    for one, two in zip(both.samples.tensors, alone.samples.tensors, strict=True):
        torch.testing.assert_close(one, two)


def test_features_are_not_stored_if_processes_disagree(frozen, monkeypatch):
    """Rounding may differ between devices; all must train in the same way."""
    trainer = build(frozen())
    monkeypatch.setattr(distributed, "all_gather", lambda own: [own, None])
    trainer._store_features()
    assert trainer.tail is None
    assert trainer.reuse_features is False
