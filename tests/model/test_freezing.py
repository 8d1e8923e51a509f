"""Frozen parameters stay as they are, until they are unfrozen."""

import pytest
import torch

from model.freezing import Freezing
from model.model import LeNet
from tests.conftest import assert_same, last_checkpoint


def test_frozen_weights_and_statistics_stay_equal_to_the_last_bit(frozen, train):
    config = frozen({"optimizer": {"type": "AdamW", "args": {"lr": 0.01}}})
    first = last_checkpoint(train(config, "--epochs", 1))["state_dict"]
    second = last_checkpoint(train(config))["state_dict"]
    for name, tensor in first.items():  # batch norm's running mean and count too
        assert torch.equal(tensor, second[name]) == (not name.startswith("head.")), name


def test_unfreezing_at_an_epoch(frozen, train, resume):
    config = frozen({"arch.unfreeze_at": 3})
    two, three = (last_checkpoint(train(config, "--epochs", n))["state_dict"] for n in (2, 3))
    untrained = train(config, "--epochs", 1, "-s", "optimizer.args.lr=1e-30")
    initial = last_checkpoint(untrained)["state_dict"]
    assert torch.equal(two["conv.weight"], initial["conv.weight"])
    assert not torch.equal(three["conv.weight"], initial["conv.weight"])
    half = train(config, "--epochs", 2)
    resume(half, "--epochs", 3)
    assert_same(last_checkpoint(half)["state_dict"], three)


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        ("(", 'arch.freeze: "(" is not a regular expression'),
        (["nowhere"], 'arch.freeze: no parameter matches "nowhere"'),
        ([""], "arch.freeze: no parameter is left to train"),
    ],
)
def test_freezing_nothing_or_everything_is_an_error(digits, train, capsys, freeze, message):
    train(digits({"arch.freeze": freeze}), code=2)
    assert message in capsys.readouterr().err


def test_freezing_by_pattern():
    model = LeNet()
    freezing = Freezing(["^conv"], until=4)
    assert freezing.apply(model, 1)
    assert not freezing.apply(model, 2)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == [
        "conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias",
    ]  # fmt: skip
    assert freezing.apply(model, 4)
    assert all(p.requires_grad for p in model.parameters())
    assert not Freezing(None).apply(model, 1)
