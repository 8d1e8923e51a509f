"""What is on disk: plain data, whole or not at all, found again."""

import datetime
import math

import pytest
import torch

from tests.conftest import assert_same, last_checkpoint
from utils import checkpoint, randomness
from utils.errors import CheckpointError, UserError

STATE = {"arch": "Net", "epoch": 1, "state_dict": {"w": torch.ones(3)}, "config": {}}


def leaves(value):
    if isinstance(value, dict):
        assert all(isinstance(key, str | int) for key in value)
        for below in value.values():
            yield from leaves(below)
    elif isinstance(value, list | tuple):
        for below in value:
            yield from leaves(below)
    else:
        yield value


@pytest.mark.parametrize("scheduler", ["MultiStepLR", "OneCycleLR", "ReduceLROnPlateau", "CyclicLR"])
def test_a_checkpoint_is_plain_data_with_the_agreed_keys(digits, train, scheduler):
    args = {"MultiStepLR": {"milestones": [1]}, "OneCycleLR": {"max_lr": 0.1}, "CyclicLR": {"base_lr": 0.1, "max_lr": 0.2}}
    sgd = {"type": "SGD", "args": {"lr": 0.01, "momentum": 0.9}}
    run = train(
        digits(
            {
                "lr_scheduler": {"type": scheduler, "args": args.get(scheduler, {})},
                "optimizer": sgd,
                "trainer.ema_decay": 0.9,
            }
        )
    )
    state = torch.load(run / "model_best.pth", weights_only=True)
    assert state.keys() == {
        *("arch", "epoch", "state_dict", "optimizer", "monitor_best", "config"),
        *("lr_scheduler", "scaler", "ema", "trainer", "rng", "structure", "classes", "input", "versions"),
    }
    kinds = {type(leaf) for leaf in leaves(state)}
    assert kinds <= {torch.Tensor, int, float, str, bool, type(None)}
    assert state["arch"] == "LeNet"
    assert state["classes"] == [str(n) for n in range(10)]
    assert state["input"]["shape"] == [1, 28, 28]
    assert math.isfinite(state["monitor_best"])


def test_saving_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    checkpoint.save(STATE, path)

    def fail(state, file):
        file.write(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(STATE | {"epoch": 2}, path)
    assert checkpoint.load(path)["epoch"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


def test_a_full_disk_is_a_plain_sentence(digits, train, monkeypatch, capsys):
    def fail(state, file):
        raise OSError(28, "No space left on device", "saved/x.pth")

    monkeypatch.setattr(torch, "save", fail)
    train(digits(), code=2)
    assert "saved/x.pth: No space left on device" in capsys.readouterr().err


def test_every_damage_is_noticed(tmp_path):
    path = tmp_path / "x.pth"
    checkpoint.save(STATE | {"state_dict": {"w": torch.arange(1000.0)}}, path)
    whole = path.read_bytes()
    for damaged in (whole[:100], whole[:-50], b"", whole.replace(whole[2000:2040], b"\xff" * 40), b"PK" + whole[40:]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"x\.pth"):
            checkpoint.load(path)


def test_find_prefers_what_is_asked_for(tmp_path):
    for name, epoch in (("checkpoint-epoch2.pth", 2), ("checkpoint-epoch10.pth", 10), ("model_best.pth", 7)):
        checkpoint.save(STATE | {"epoch": epoch}, tmp_path / name)
    assert checkpoint.find(tmp_path)[1]["epoch"] == 10
    assert checkpoint.find(tmp_path, best=True)[1]["epoch"] == 7
    assert checkpoint.find(tmp_path / "checkpoint-epoch2.pth", best=True)[1]["epoch"] == 2
    (tmp_path / "model_best.pth").write_bytes(b"")
    assert checkpoint.find(tmp_path, best=True)[1]["epoch"] == 10


def test_two_runs_in_one_second_get_two_folders(tmp_path, monkeypatch):
    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 11, 21, 3, 4, 5)

    monkeypatch.setattr(datetime, "datetime", Stopped)
    made = [checkpoint.new_run_dir(tmp_path, "x").name for _ in range(3)]
    assert made == ["1121_030405", "1121_030405-2", "1121_030405-3"]
    assert checkpoint.log_dir_of(tmp_path / "models" / "x" / made[1]) == tmp_path / "log" / "x" / made[1]


def test_no_run_to_resume(tmp_path):
    with pytest.raises(UserError, match="no run to resume"):
        checkpoint.newest_run(tmp_path)


def test_generators_come_back_as_they_were():
    import random

    import numpy as np

    randomness.seed_everything(1)
    np.random.randn(), random.gauss(0, 1)  # leaves half a pair behind in each
    state = randomness.get_state()
    draws = [(torch.rand(2).tolist(), np.random.randn(), random.gauss(0, 1)) for _ in range(2)]
    randomness.seed_everything(2)
    randomness.set_state(state)
    assert [(torch.rand(2).tolist(), np.random.randn(), random.gauss(0, 1)) for _ in range(2)] == draws


def test_seeds_of_neighbours_are_unrelated():
    seeds = {randomness.seed_of(seed, "epoch", epoch) for seed in range(30) for epoch in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_saved_config_makes_the_same_run_again(digits, train):
    import json

    first = train(digits())
    second = train(json.loads((first / "config.json").read_text()))
    assert_same(last_checkpoint(second)["state_dict"], last_checkpoint(first)["state_dict"])
    assert json.loads((first / "config.json").read_text())["versions"]["torch"] == torch.__version__
