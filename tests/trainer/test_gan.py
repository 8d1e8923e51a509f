"""Several networks, optimizers and schedules from the config: a GAN on the digits."""

import copy
import csv

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import assert_same, build, last_checkpoint
from utils import run_folder

GAN = {
    "arch": {"type": "Generator", "args": {"noise": 8, "width": 4}},
    "discriminator": {"role": "arch", "type": "Discriminator", "args": {"width": 4}},
    "task": {"type": "GanTask", "args": {"noise": 8}},
    "optimizer": {"type": "Adam", "args": {"lr": 0.001}},
    "optimizer_d": {
        "role": "optimizer", "network": "discriminator", "type": "SGD",
        "args": {"lr": 0.01, "momentum": 0.9},
    },
    "lr_scheduler_d": {
        "role": "lr_scheduler", "optimizer": "optimizer_d", "type": "StepLR",
        "args": {"step_size": 1, "gamma": 0.5},
    },
    "metrics": [],
    "loss": None,
    "trainer.monitor": "min val_loss_d",
    "trainer.epochs": 3,
}  # fmt: skip


def gan(changes=()):
    """The configuration with other values; None removes a section."""
    changed = copy.deepcopy(GAN) | dict(changes)
    return {k: v for k, v in changed.items() if v is not None or k == "loss"}


def test_each_optimizer_steps_in_turn_as_in_a_loop_of_ones_own(digits):
    trainer = build(digits(gan({"trainer.len_epoch": 4, "optimizer.type": "SGD"})))
    generator, discriminator = (
        copy.deepcopy(network) for network in (trainer.model, *trainer.task.networks())
    )
    for_generator = torch.optim.SGD(generator.parameters(), 0.001)
    for_discriminator = torch.optim.SGD(discriminator.parameters(), 0.01, 0.9)

    def judge(images, truth):
        logits = discriminator(images)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth))

    torch.manual_seed(3)
    trainer._train_epoch(1)
    torch.manual_seed(3)
    trainer.data_loader.set_epoch(1)
    generator.train()
    for (real, _), _ in zip(trainer.data_loader, range(4), strict=False):
        fake = generator(torch.randn(len(real), 8))
        for_discriminator.zero_grad()
        (judge(real, 1.0) + judge(fake.detach(), 0.0)).backward()
        for_discriminator.step()
        for_generator.zero_grad()
        judge(fake, 1.0).backward()
        for_generator.step()
    # batch norms' statistics were recomputed for the evaluation, after so few steps
    learned = [list(network.parameters()) for network in (trainer.model, generator)]
    torch.testing.assert_close(*learned)
    [trained] = trainer.task.networks()
    torch.testing.assert_close(trained.state_dict(), discriminator.state_dict())


def test_resumed_run_equals_the_unbroken_one(digits, train, resume, tmp_path):
    whole = train(digits(gan()))
    cut = train(digits(gan({"trainer.epochs": 1})))
    resume(cut, "--epochs", 3)
    one, two = last_checkpoint(whole), last_checkpoint(cut)
    for key in ("state_dict", "optimizer", "kept", "rng", "monitor_best"):
        assert_same(one[key], two[key], key)
    parts = one["kept"]["parts"]
    assert set(parts) == {
        "task.discriminator", "trainer.optimizers.optimizer_d", "trainer.schedules.lr_scheduler_d"
    }  # fmt: skip
    assert parts["trainer.optimizers.optimizer_d"]["param_groups"][0]["lr"] == 0.01 / 8
    with open(run_folder.log_dir_for(whole) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["lr_optimizer_d"]) for row in rows] == [0.01, 0.005, 0.0025]
    assert {"loss_d", "val_loss_d"} <= rows[0].keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer_d": None, "lr_scheduler_d": None}, 'GanTask wants a step of "optimizer_d"'),
        ({"optimizer_d.network": "critic"}, 'no section "critic" has the role arch'),
        ({"lr_scheduler_d.optimizer": "optimizer_g"}, 'no section "optimizer_g" has the role'),
        ({"discriminator": None}, 'GanTask needs "discriminator"'),
        ({"discriminator.role": "network"}, 'should be one of arch, loss, optimizer, lr_schedule'),
        ({"discriminator.type": "Discriminater"}, 'did you mean "Discriminator"?'),
        ({"optimizer_d.args.momentun": 1}, 'did you mean "momentum"?'),
        ({"task": None, "loss": "cross_entropy"}, "SupervisedTask"),
        ({"task": None}, "loss: missing"),
        ({"trainer.grad_accum_steps": 2}, "only with one optimizer"),
        ({"trainer.monitor": "min val_loss_g"}, 'nothing is called "val_loss_g"'),
        ({"task.args.noise": 9}, "Generator cannot take the first batch"),
        ({"optimizr": {"type": "Adam"}}, 'optimizr: unknown section; did you mean "optimizer"?'),
    ],
)  # fmt: skip
def test_a_mistake_is_a_sentence(digits, train, capsys, changes, message):
    train(digits(gan(changes)), code=2)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_section_that_no_task_takes_is_said(digits, train, capsys):
    train(digits({"critic": {"role": "arch", "type": "Discriminator", "args": {"width": 4}}}))
    assert "critic: SupervisedTask has no argument of that name" in "".join(capsys.readouterr())
