"""The plain loop trains what `Trainer` trains."""

import pytest

from tests.conftest import assert_same, build, last_checkpoint
from trainer.plain_trainer import PlainTrainer

NUMBERS = ("loss", "accuracy", "top_k_acc", "val_loss", "val_accuracy")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trainer.ema_decay": 0.9, "trainer.len_epoch": 5},
        {"lr_scheduler": {"type": "OneCycleLR", "args": {"max_lr": 0.01}}},
    ],
    ids=["as it is", "average", "schedule by step"],
)
def test_plain_loop_gives_the_weights_and_numbers_of_trainer(digits, changes):
    plain = build(digits(changes | {"trainer.type": "PlainTrainer"}))
    usual = build(digits(changes | {"trainer.type": "Trainer"}))
    assert type(plain) is PlainTrainer
    one, two = plain.train(), usual.train()
    assert [one[name] for name in NUMBERS] == [two[name] for name in NUMBERS]
    for part in ("state_dict", "optimizer", "lr_scheduler", "ema"):
        assert_same(plain.state_dict()[part], usual.state_dict()[part])


def test_resumed_plain_run_equals_unbroken_run(digits, train, resume):
    config = digits({"trainer.type": "PlainTrainer", "trainer.epochs": 3})
    unbroken, resumed = train(config), train(config, "--epochs", 1)
    resume(resumed, "--epochs", 3)
    one, two = last_checkpoint(unbroken), last_checkpoint(resumed)
    for part in ("state_dict", "optimizer", "lr_scheduler", "monitor_best"):
        assert_same(one[part], two[part])


def test_what_does_not_fit_is_explained_before_the_first_epoch(digits, train, capsys):
    config = digits({"trainer.type": "PlainTrainer", "loss": "mse_loss"})
    train(config, code=2)
    assert "loss: mse_loss compares number by number" in capsys.readouterr().err
