"""What a task, its loss and the network hold: trained, kept, and not touched by the rehearsal."""

import csv

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import assert_same, build, last_checkpoint
from tests.trainer.test_gan import gan
from utils import run_folder

OWN = """
import torch
import torch.nn.functional as F
from torch import nn
from trainer.tasks import SupervisedTask

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(10))
    def forward(self, output, target):
        return F.cross_entropy(output * self.scale, target)

class Weighted(SupervisedTask):
    def __init__(self, criterion, how: str = "parameter"):
        super().__init__(criterion)
        self.scale = nn.Parameter(torch.ones(10))
        if how == "list":
            self.scale = [self.scale]
        if how == "module":
            self.scale = nn.ParameterList([self.scale])
    def step(self, model, batch):
        scale = self.scale if isinstance(self.scale, nn.Parameter) else self.scale[0]
        step = super().step(model, batch)
        step.loss = self.criterion(step.output * scale, step.target)
        return step

class Net(nn.Module):
    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.head, self.ratio = nn.Linear(784, num_classes), 1.0
    def forward(self, x):
        if self.training:
            self.ratio *= 0.99
        return self.head(x.flatten(1)) * self.ratio

class Plain(nn.Module):
    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.head = nn.Linear(784, num_classes)
    def forward(self, x):
        return self.head(x.flatten(1))

class Counting(SupervisedTask):
    def __init__(self, criterion):
        super().__init__(criterion)
        self.seen = 0
    def step(self, model, batch):
        step = super().step(model, batch)
        if torch.is_grad_enabled():
            self.seen += 1
            if self.seen == 1:
                self.first = batch[1][:5].clone()
            if self.seen % 2:
                step.log["odd"] = step.loss
        return step

class Collision(SupervisedTask):
    def __init__(self, criterion, name: str):
        super().__init__(criterion)
        self.name = name
    def step(self, model, batch):
        step = super().step(model, batch)
        step.log[self.name] = step.loss
        return step

class Number(SupervisedTask):
    def step(self, model, batch):
        step = super().step(model, batch)
        step.loss = step.loss.item()
        return step
"""
BASE = {"arch": "own.Plain", "lr_scheduler": None, "metrics": ["accuracy"]}


@pytest.fixture(autouse=True)
def _own(own_code):
    own_code("own", OWN)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "own.Scaled"},
        {"task": "own.Weighted"},
        {"task": {"type": "own.Weighted", "args": {"how": "list"}}},
        {"task": {"type": "own.Weighted", "args": {"how": "module"}}},
    ],
)
def test_parameters_of_task_and_loss_learn_as_in_torch(digits, train, resume, changes):
    config = digits({**BASE, **changes, "trainer.len_epoch": 3})
    trainer = build(config)
    head, scale = torch.nn.Linear(784, 10), torch.ones(10, requires_grad=True)
    head.load_state_dict({k[5:]: v.clone() for k, v in trainer.model.state_dict().items()})
    optimizer = torch.optim.Adam([*head.parameters(), scale], 0.002)
    trainer.data_loader.set_epoch(1)
    for (data, target), _ in zip(trainer.data_loader, range(3), strict=False):
        optimizer.zero_grad()
        F.cross_entropy(head(data.flatten(1)) * scale, target).backward()
        optimizer.step()
    trainer._train_epoch(1)
    [learned] = trainer.task.parameters()
    torch.testing.assert_close(learned.detach(), scale.detach())
    assert not torch.equal(learned, torch.ones(10))
    whole, cut = (train(config, "--epochs", epochs) for epochs in (3, 1))
    resume(cut, "--epochs", 3)
    one, two = last_checkpoint(whole), last_checkpoint(cut)
    for key in ("state_dict", "optimizer", "kept"):
        assert_same(one[key], two[key], key)


def test_numbers_that_a_network_changes_are_kept(digits, train, resume):
    config = digits({**BASE, "arch": "own.Net"})
    whole, cut = (train(config, "--epochs", epochs) for epochs in (3, 1))
    resume(cut, "--epochs", 3)
    one, two = last_checkpoint(whole), last_checkpoint(cut)
    assert_same(one["state_dict"], two["state_dict"])
    assert one["kept"]["values"] == two["kept"]["values"]
    assert set(one["kept"]["values"]) == {"network.ratio"}


def test_rehearsal_leaves_the_task_as_it_was(digits):
    trainer = build(digits({**BASE, "task": "own.Counting"}))
    trainer.rehearse()
    assert trainer.task.seen == 0
    assert not hasattr(trainer.task, "first")


def test_what_is_logged_in_some_batches_is_their_mean(digits, train):
    run = train(digits({**BASE, "task": "own.Counting", "optimizer.args.lr": 1e-9}))
    with open(run_folder.log_dir_for(run) / "metrics.csv", newline="") as file:
        row = next(csv.DictReader(file))
    assert float(row["odd"]) == pytest.approx(float(row["loss"]), rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *[
            ({"task": {"type": "own.Collision", "args": {"name": name}}}, f'logs "{name}"')
            for name in ("loss", "accuracy", "lr")
        ],
        ({"task": "own.Number"}, "the loss of a step should be a tensor, not a float"),
    ],
)
def test_a_mistake_is_a_sentence(digits, train, capsys, changes, message):
    train(digits({**BASE, **changes}), code=2)
    assert message in capsys.readouterr().err


def test_plain_loop_has_one_optimizer(digits, train, capsys):
    train(digits(gan({"trainer.type": "PlainTrainer"})), code=2)
    assert "PlainTrainer has one optimizer" in capsys.readouterr().err
