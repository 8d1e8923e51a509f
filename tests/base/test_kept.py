"""What a trainer or a task changes while it trains is in the checkpoint, or refused."""

from types import SimpleNamespace

import pytest
import torch

import base.kept
from tests.conftest import assert_same, build, last_checkpoint
from utils.engine.engine import map_tensors

OWN = """
import random
from collections import deque
import numpy as np
import torch
from torch import nn
from trainer.tasks import SupervisedTask
from trainer.trainer import Trainer

class Cooling(SupervisedTask):
    def __init__(self, criterion, start: float = 2.0):
        super().__init__(criterion)
        self.start = start
        self.temperature, self.seen, self.center = start, [], torch.zeros(10)
        self.scale = nn.Parameter(torch.ones(()))
        self.bias = nn.Linear(10, 10)
    def step(self, model, batch):
        step = super().step(model, batch)
        if torch.is_grad_enabled():
            self.temperature *= 0.99
            self.center = 0.9 * self.center + 0.1 * step.output.detach().mean(0)
            with torch.no_grad():
                self.bias.weight.add_(0.01)
        step.loss = step.loss * self.temperature + self.center.square().sum()
        return step

class Noting(Trainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.history = {"losses": []}
    def before_epoch(self, epoch):
        self.history["losses"].append(float(epoch))

class Kept(Trainer):
    def __init__(self, *args, keeps: str = "deque", **kwargs):
        super().__init__(*args, **kwargs)
        self.recent = {
            "deque": deque(), "generator": np.random.default_rng(0), "set": set(),
            "iterator": iter(range(100)), "array": np.zeros(3), "object": Counter(),
        }[keeps]
    def before_epoch(self, epoch):
        kind = self.recent
        if isinstance(kind, deque): kind.append(epoch)
        if isinstance(kind, np.random.Generator): kind.random()
        if isinstance(kind, set): kind.add(epoch)
        if isinstance(kind, np.ndarray): kind += 1
        if isinstance(kind, Counter): kind.count += 1
        if hasattr(kind, "__next__"): next(kind)

class Counter:
    def __init__(self):
        self.count = 0

class Unkept(Kept):
    not_kept = (*Kept.not_kept, "recent")
"""


@pytest.fixture(autouse=True)
def _own(own_code):
    own_code("own", OWN)


@pytest.mark.parametrize("changes", [{"task": "own.Cooling"}, {"trainer.type": "own.Noting"}])
def test_changed_values_make_a_resumed_run_the_unbroken_one(digits, train, resume, changes):
    whole, cut = (train(digits(dict(changes)), "--epochs", epochs) for epochs in (3, 1))
    resume(cut, "--epochs", 3)
    one, two = last_checkpoint(whole), last_checkpoint(cut)
    for key in ("state_dict", "optimizer", "kept", "monitor_best"):
        assert_same(one[key], two[key], key)
    assert one["kept"]["values"]


def test_only_what_changes_is_kept(digits, train):
    kept = last_checkpoint(train(digits({"task": "own.Cooling"})))["kept"]
    assert set(kept["values"]) == {"task.temperature", "task.center", "task.scale"}  # not start
    assert set(kept["parts"]) == {"task.bias"}
    plain = last_checkpoint(train(digits()))["kept"]
    assert plain == {"parts": {}, "values": {}}


@pytest.mark.parametrize("keeps", ["deque", "generator", "set", "iterator", "array", "object"])
def test_what_cannot_be_kept_is_refused(digits, train, capsys, keeps):
    config = digits({"trainer.type": "own.Kept", "trainer.keeps": keeps})
    train(config, code=1)
    assert "trainer.recent: a checkpoint cannot keep this" in capsys.readouterr().err
    train(config, "--check", code=1)
    train(digits({"trainer.type": "own.Unkept", "trainer.keeps": keeps}))


def test_a_checkpoint_without_a_part_cannot_be_resumed(digits, train, resume, capsys):
    run = train(digits())
    resume(run, "--epochs", 3, "-s", "task=own.Cooling", code=2)
    assert "the checkpoint lacks the state of task.bias" in capsys.readouterr().err


def test_nothing_of_the_shipped_trainers_is_left_to_chance(digits):
    trainer = build(digits())
    first = dict(trainer.kept.first)
    trainer.train()
    assert trainer.kept.state_dict() == {"parts": {}, "values": {}}
    own = {name for name in first if not name.startswith("network.")}
    assert own <= {"trainer.optimizers", "trainer.schedules", "task.criterion", "task.load_network"}


def test_a_checkpoint_sets_only_what_a_run_may_keep(digits):
    trainer = build(digits())
    save_dir, run_epoch = trainer.config.save_dir, trainer._run_epoch
    values = {
        "trainer.config": {"save_dir": "/elsewhere"}, "trainer._run_epoch": 1, "network.forward": 1,
        "network.conv1.hooks": 2, "other.x": 3, "trainer.own": 4,
    }  # fmt: skip
    trainer.kept.load_state_dict({"parts": trainer.kept.state_dict()["parts"], "values": values})
    assert trainer.config.save_dir == save_dir
    assert trainer._run_epoch == run_epoch
    assert callable(trainer.model.forward)
    assert not hasattr(trainer.model.conv1, "hooks")
    assert trainer.own == 4


def test_tensors_that_were_on_a_gpu_go_back_there():
    """A checkpoint is loaded on the CPU, and the attribute may have been None before."""

    class Owner:
        not_kept = ()

        def __init__(self):
            self.bank = self.count = None

    engine = SimpleNamespace(to_device=lambda value: map_tensors(value, lambda t: t.to("meta")))
    owner = Owner()
    kept = base.kept.Kept({"task": owner}, engine)
    owner.bank, owner.count = [torch.ones(3, device="meta")], torch.ones(2)
    state = kept.state_dict()
    assert state["on_device"] == ["task.bank"]
    state["values"]["task.bank"] = [torch.ones(3)]
    again = Owner()
    base.kept.Kept({"task": again}, engine).load_state_dict(state)
    assert [again.bank[0].device.type, again.count.device.type] == ["meta", "cpu"]
    del state["on_device"]  # before December 2026
    again = Owner()
    base.kept.Kept({"task": again}, engine).load_state_dict(state)
    assert again.bank[0].device.type == "cpu"
