"""Checkpoints: plain data, complete or not there, found again."""

import datetime
import json
import math
import random

import numpy as np
import pytest
import torch

from tests.conftest import assert_same, last_checkpoint
from utils import checkpoint
from utils.engine import randomness
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


SCHEDULERS = {
    "MultiStepLR": {"milestones": [1]},
    "OneCycleLR": {"max_lr": 0.1},
    "ReduceLROnPlateau": {},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 0.2},
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_checkpoint_is_plain_data_with_the_documented_keys(digits, train, scheduler):
    run = train(
        digits(
            {
                "lr_scheduler": {"type": scheduler, "args": SCHEDULERS[scheduler]},
                "optimizer": {"type": "SGD", "args": {"lr": 0.01, "momentum": 0.9}},
                "trainer.ema_decay": 0.9,
            }
        )
    )
    state = torch.load(run / "model_best.pth", weights_only=True)
    keys = "arch epoch state_dict optimizer monitor_best config"  # pytorch-template's
    keys += " lr_scheduler scaler ema trainer rng structure classes input versions"
    assert state.keys() == set(keys.split())
    types = {type(leaf) for leaf in leaves(state)}
    assert types <= {torch.Tensor, int, float, str, bool, type(None)}
    assert state["arch"] == "LeNet"
    assert state["classes"] == [str(n) for n in range(10)]
    assert state["input"]["shape"] == [1, 28, 28]
    assert math.isfinite(state["monitor_best"])


def test_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
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


def test_full_disk_is_a_plain_message(digits, train, monkeypatch, capsys):
    def fail(state, file):
        raise OSError(28, "No space left on device", "saved/x.pth")

    monkeypatch.setattr(torch, "save", fail)
    train(digits(), code=2)
    assert "saved/x.pth: No space left on device" in capsys.readouterr().err


def test_every_damage_is_detected(tmp_path):
    path = tmp_path / "x.pth"
    checkpoint.save(STATE | {"state_dict": {"w": torch.arange(1000.0)}}, path)
    whole = path.read_bytes()
    for damaged in (
        whole[:100],
        whole[:-50],
        b"",
        whole.replace(whole[2000:2040], b"\xff" * 40),
        b"PK" + whole[40:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"x\.pth"):
            checkpoint.load(path)


def test_find_newest_and_best(tmp_path):
    for name, epoch in (
        ("checkpoint-epoch2.pth", 2),
        ("checkpoint-epoch10.pth", 10),
        ("model_best.pth", 7),
    ):
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
    names = [checkpoint.new_run_dir(tmp_path, "x").name for _ in range(3)]
    assert names == ["1121_030405", "1121_030405-2", "1121_030405-3"]
    run = tmp_path / "models" / "x" / names[1]
    assert checkpoint.log_dir_for(run) == tmp_path / "log" / "x" / names[1]


def test_no_run_to_resume(tmp_path):
    with pytest.raises(UserError, match="no run to resume"):
        checkpoint.newest_run(tmp_path)


def test_generators_are_restored():
    randomness.seed_everything(1)
    np.random.randn(), random.gauss(0, 1)  # leaves half a pair in each
    state = randomness.get_state()
    draws = [(torch.rand(2).tolist(), np.random.randn(), random.gauss(0, 1)) for _ in range(2)]
    randomness.seed_everything(2)
    randomness.set_state(state)
    again = [(torch.rand(2).tolist(), np.random.randn(), random.gauss(0, 1)) for _ in range(2)]
    assert again == draws


@pytest.mark.parametrize("as_lists", [False, True], ids=["now", "older checkpoints"])
def test_torch_generators_of_a_process_are_restored(as_lists):
    cpu = torch.device("cpu")
    states = randomness.torch_rng_state(cpu)
    drawn = torch.rand(3)
    saved = [state.tolist() for state in states] if as_lists else states
    randomness.set_torch_rng_state(saved, cpu)
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize(
    ("action", "draws"),
    [
        (lambda: torch.nn.functional.dropout(torch.ones(2)), True),
        (lambda: np.random.randn(), True),
        (lambda: random.gauss(0, 1), True),
        (lambda: torch.ones(2).sum(), False),
    ],
)
def test_use_of_randomness_is_detected(action, draws):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert randomness.draws_randomness(action) == draws
    assert torch.equal(torch.rand(2), expected)  # nothing outside is disturbed


def test_seeds_of_neighbours_are_unrelated():
    seeds = {
        randomness.derive_seed(seed, "epoch", epoch) for seed in range(30) for epoch in range(30)
    }
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)


FORMAT = """
import json
class Format:
    def load(self, path):
        return json.loads(path.read_text())
    def amend(self, path, **changes):
        path.write_text(json.dumps(self.load(path) | changes))
READERS = {".other": Format()}
"""


def test_files_of_other_formats(tmp_path, monkeypatch):
    """A folder's formats.py says how to read a suffix."""
    (tmp_path / "other_room").mkdir()
    (tmp_path / "other_room" / "formats.py").write_text(FORMAT)
    monkeypatch.setattr(checkpoint, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "network.other"
    path.write_text('{"arch": "Net", "classes": null}')
    state = checkpoint.load(path)
    checkpoint.amend(path, state, classes=["a", "b"])
    assert checkpoint.find(path) == (path, {"arch": "Net", "classes": ["a", "b"]})
    assert checkpoint.reader_for(tmp_path / "x.pth") is None
    (tmp_path / "network.unknown").write_bytes(b"something")
    with pytest.raises(CheckpointError, match=r"nothing in this project reads \.unknown"):
        checkpoint.load(tmp_path / "network.unknown")
    checkpoint.save(STATE, tmp_path / "renamed.bak")
    assert checkpoint.load(tmp_path / "renamed.bak")["epoch"] == 1


def test_later_and_unfinished_files_are_set_aside(tmp_path):
    for epoch in (1, 2, 3):
        checkpoint.save(STATE | {"epoch": epoch}, tmp_path / f"checkpoint-epoch{epoch}.pth")
    (tmp_path / "model_best.pth").write_bytes(b"damaged")
    (tmp_path / ".checkpoint-epoch4.pth.77.tmp").touch()  # a process was killed while it saved
    moved = checkpoint.set_aside(tmp_path, 1)
    names = ["checkpoint-epoch3.pth", "checkpoint-epoch2.pth", "model_best.pth"]
    assert [path.relative_to(tmp_path / "replaced").as_posix() for path in moved] == names
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-epoch1.pth", "replaced"}
    checkpoint.save(STATE | {"epoch": 2}, tmp_path / "checkpoint-epoch2.pth")
    [again] = checkpoint.set_aside(tmp_path, 1)
    assert again.name == "checkpoint-epoch2-2.pth"


def test_saved_config_repeats_the_run(digits, train):
    first = train(digits())
    second = train(json.loads((first / "config.json").read_text()))
    assert_same(last_checkpoint(second)["state_dict"], last_checkpoint(first)["state_dict"])
    assert json.loads((first / "config.json").read_text())["versions"]["torch"] == torch.__version__
