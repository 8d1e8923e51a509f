"""Checkpoints: plain data, complete or not there, found again."""

import datetime
import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from data_loader.data_loaders import DigitsDataLoader
from tests.conftest import assert_same, last_checkpoint
from utils import checkpoint, run_folder
from utils.engine import randomness
from utils.errors import CheckpointError, UserError
from utils.origin import digest

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
    keys += (
        " lr_scheduler scaler ema trainer kept rng structure classes input versions origin sessions"
    )
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
    train(digits(), code=1)
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
    names = [run_folder.new_run_dir(tmp_path, "x").name for _ in range(3)]
    assert names == ["1121_030405", "1121_030405-2", "1121_030405-3"]
    run = tmp_path / "models" / "x" / names[1]
    assert run_folder.log_dir_for(run) == tmp_path / "log" / "x" / names[1]


def test_no_run_to_resume(tmp_path):
    with pytest.raises(UserError, match="no run to resume"):
        checkpoint.newest_run(tmp_path)


def test_generators_are_restored():
    randomness.seed_everything(1)
    np.random.randn(), random.gauss(0, 1)  # leaves half a pair in each
    state = randomness.get_state(torch.device("cpu"))
    draws = [(torch.rand(2).tolist(), np.random.randn(), random.gauss(0, 1)) for _ in range(2)]
    randomness.seed_everything(2)
    randomness.set_state(state, torch.device("cpu"))
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
    killed = subprocess.Popen([sys.executable, "-c", ""])  # while it saved
    killed.wait()
    (tmp_path / f".checkpoint-epoch4.pth.{killed.pid}.tmp").touch()
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


NETWORK = {
    "layer.weight": torch.arange(24.0).reshape(2, 3, 2, 2),
    "layer.bias": torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
    "layer.shift": torch.tensor([3.0, 4.0], dtype=torch.bfloat16),
    "count": torch.tensor(3),
    "empty": torch.zeros(0, 4),
}
DIGEST = digest({"state_dict": NETWORK})
AVERAGE = {"n_averaged": 3, "state_dict": {"layer.bias": torch.zeros(2)}}


def changed(name, value):
    return {"state_dict": NETWORK | {name: value}}


SAME = {
    "other content": {"state_dict": NETWORK, "epoch": 9, "inspection": {"threshold": 0.5}},
    "without an average, not pruned": {"state_dict": NETWORK, "ema": None, "structure": None},
    "another order": {"state_dict": dict(reversed(NETWORK.items()))},
    "memory format": changed(
        "layer.weight", NETWORK["layer.weight"].to(memory_format=torch.channels_last)
    ),
    "parameters": changed("layer.weight", torch.nn.Parameter(NETWORK["layer.weight"])),
    "a part of a larger tensor": changed("layer.bias", torch.arange(4).bfloat16()[1:3]),
    "a view of a transposed one": changed(
        "layer.weight", NETWORK["layer.weight"].mT.contiguous().mT
    ),
}
DIFFERENT = {
    "a bit": changed("layer.bias", torch.tensor([1.0, 2.015625], dtype=torch.bfloat16)),
    "a counter": changed("count", torch.tensor(4)),
    "a name": {"state_dict": {f"{name}_": tensor for name, tensor in NETWORK.items()}},
    "a dtype with the same bytes": changed("layer.bias", NETWORK["layer.bias"].view(torch.int16)),
    "a shape with the same bytes": changed("layer.weight", torch.arange(24.0)),
    "the shape of nothing": changed("empty", torch.zeros(4, 0)),
    "one tensor less": {"state_dict": {n: t for n, t in NETWORK.items() if n != "count"}},
    "exchanged values": {
        "state_dict": NETWORK
        | {"layer.bias": NETWORK["layer.shift"], "layer.shift": NETWORK["layer.bias"]}
    },
    "an average": {"state_dict": NETWORK, "ema": AVERAGE},
    "the structure": {"state_dict": NETWORK, "structure": {"attributes": {"layer": {"groups": 2}}}},
}


@pytest.mark.parametrize("state", SAME.values(), ids=SAME)
def test_digest_depends_on_the_network_alone(state):
    assert digest(state) == DIGEST


@pytest.mark.parametrize("state", DIFFERENT.values(), ids=DIFFERENT)
def test_digest_of_another_network_is_another(state):
    assert digest(state) != DIGEST
    assert len({DIGEST, *map(digest, DIFFERENT.values())}) == len(DIFFERENT) + 1


def test_digest_survives_saving_copying_and_amending(tmp_path):
    path, state = tmp_path / "x.pth", STATE | {"state_dict": NETWORK, "ema": AVERAGE}
    torch.save(state, path)  # an old checkpoint, which has no record
    expected = digest(state)
    assert expected != DIGEST
    assert checkpoint.read_origin(path)["digest"] == expected
    checkpoint.amend(path, checkpoint.load(path), inspection={"target": "a", "threshold": 0.5})
    checkpoint.copy(path, tmp_path / "copy.pth")
    for file in (path, tmp_path / "copy.pth"):
        assert torch.load(file)["origin"]["digest"] == expected
        assert torch.load(file)["inspection"] == {"target": "a", "threshold": 0.5}


def test_digest_of_shared_and_complex_tensors_is_saved(tmp_path):
    tied = torch.ones(3, dtype=torch.complex64)
    state = STATE | {"state_dict": {"a": tied, "b": tied, "c": tied.conj()}}
    checkpoint.save(state, tmp_path / "x.pth")
    again = checkpoint.load(tmp_path / "x.pth")
    assert again["origin"]["digest"] == digest(again) == digest(state)


def test_a_checkpoint_that_was_replaced_meanwhile_is_not_amended(tmp_path, caplog):
    """A test stores its threshold in the best checkpoint of a run that goes on."""
    path = tmp_path / "model_best.pth"
    checkpoint.save(STATE, path)
    tested = checkpoint.load(path)
    checkpoint.save(STATE | {"epoch": 2, "state_dict": {"w": torch.zeros(3)}}, path)
    checkpoint.amend(path, tested, inspection={"target": "a", "threshold": 0.5})
    assert checkpoint.load(path)["epoch"] == 2
    assert "inspection" not in checkpoint.load(path)
    assert "model_best.pth was replaced meanwhile" in caplog.text


class LoaderWithDigest(DigitsDataLoader):
    """Knows which data it reads."""

    digest = "digest of the digits"


def test_runs_record_where_they_come_from(digits, train, resume):
    loader = "tests.utils.test_checkpoint.LoaderWithDigest"
    first = train(digits({"trainer.ema_decay": 0.9, "data_loader.type": loader}))
    one = checkpoint.load(first / "model_best.pth")
    assert one["origin"] == {
        "digest": digest(one),
        "data": "digest of the digits",
        "seed": 5,
        "versions": one["versions"],
        "made_from": None,
        "figures": {
            "epoch": one["epoch"],
            "trained on": 1294,
            "validated on": 144,
            **{k: v for k, v in one["trainer"]["history"][-1].items() if k.startswith("val_")},
        },
    }
    second = train(digits({"trainer.epochs": 1}), "-r", first)
    two = last_checkpoint(second)
    assert two["origin"]["made_from"] == one["origin"] | {"config": one["config"]}
    assert two["origin"]["data"] is None
    resume(second, "--epochs", 2)
    again = last_checkpoint(second)
    assert again["epoch"] == 2
    changed = {"digest": digest(again), "figures": again["origin"]["figures"]}
    assert again["origin"] == two["origin"] | changed
    assert len({state["origin"]["digest"] for state in (one, two, again)}) == 3


def test_a_run_that_starts_from_an_old_checkpoint_names_its_digest(digits, train):
    old = train(digits({"trainer.epochs": 1}))
    state = checkpoint.load(old / "model_best.pth")
    record = state.pop("origin")
    torch.save(state, old / "model_best.pth")
    new = train(digits({"trainer.epochs": 1}), "-r", old)
    known = {key: record[key] for key in ("digest", "seed", "versions", "made_from")}
    known |= {"data": None, "config": state["config"]}
    assert last_checkpoint(new)["origin"]["made_from"] == known


def make_report(file, source, *others):
    """A report on `source` as the verbs write it, with other files beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    record = checkpoint.origin_beside(file, source, checkpoint.load(source))
    file.write_text(json.dumps({"origin": record}))
    for name in others:
        file.with_name(name).touch()


def files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def derived(tmp_path):
    """A run's folder with its best checkpoint, another one, and what was made from each."""
    best, numbered = tmp_path / "model_best.pth", tmp_path / "checkpoint-epoch1.pth"
    checkpoint.save(STATE | {"state_dict": {"w": torch.zeros(3)}}, numbered)
    checkpoint.save(STATE | {"epoch": 2}, best)
    (tmp_path / "test" / "wrong_images").mkdir(parents=True)
    (tmp_path / "test" / "wrong_images" / "a.jpg").touch()
    (tmp_path / "test" / "images").mkdir()
    (tmp_path / "test" / "images" / "predictions.csv").touch()
    make_report(tmp_path / "test" / "result.json", best, "report.html", "predictions.csv")
    make_report(tmp_path / "test" / "result_val.json", numbered, "report_val.html")
    make_report(tmp_path / "compare" / "compare.json", best, "compare.csv")
    (tmp_path / "notes.txt").touch()
    return tmp_path


OF_BEST = {
    "test/result.json",
    "test/report.html",
    "test/predictions.csv",
    "test/images/predictions.csv",
}
OF_BEST |= {"test/wrong_images/a.jpg", "compare/compare.json", "compare/compare.csv"}


def test_what_was_made_from_the_best_checkpoint_is_moved_with_it(derived, caplog):
    before = files(derived)
    checkpoint.save(
        STATE | {"epoch": 3, "state_dict": {"w": torch.arange(3)}}, derived / "model_best.pth"
    )
    assert files(derived) == before - OF_BEST | {f"replaced/{name}" for name in OF_BEST}
    [message] = caplog.messages
    assert "model_best.pth was replaced" in message
    assert "test/result.json" in message
    assert "result_val" not in message


@pytest.mark.parametrize("action", ["amend", "copy", "another epoch", "a new file", "numbered"])
def test_nothing_is_moved_while_the_network_is_the_same(derived, action, caplog):
    best = derived / "model_best.pth"
    if action == "amend":
        checkpoint.amend(best, checkpoint.load(best), inspection={"target": "a", "threshold": 0.5})
    elif action == "copy":
        checkpoint.copy(best, best)
    elif action == "another epoch":
        checkpoint.save(STATE | {"epoch": 7}, best)
    elif action == "numbered":
        numbered = derived / "checkpoint-epoch1.pth"
        checkpoint.save(checkpoint.load(numbered) | {"optimizer": {}}, numbered)
    before = files(derived) | {"checkpoint-epoch3.pth"}
    checkpoint.save(STATE | {"epoch": 3}, derived / "checkpoint-epoch3.pth")
    assert files(derived) == before
    assert not caplog.messages


def test_resuming_an_earlier_checkpoint_moves_what_was_made_from_later_ones(derived):
    before = files(derived)
    [moved] = checkpoint.set_aside(derived, 1)
    assert moved == derived / "replaced" / "model_best.pth"
    gone = OF_BEST | {"model_best.pth"}
    assert files(derived) == before - gone | {f"replaced/{name}" for name in gone}


def test_what_was_made_from_a_numbered_checkpoint_is_moved_with_it(derived):
    """The best one is of an earlier epoch; what has no record is its."""
    checkpoint.save(STATE | {"epoch": 0}, derived / "model_best.pth")
    before = files(derived)
    checkpoint.set_aside(derived, 0)
    gone = {"checkpoint-epoch1.pth", "test/result_val.json", "test/report_val.html"}
    assert files(derived) == before - gone | {f"replaced/{name}" for name in gone}


@pytest.mark.parametrize("damaged", [False, True])
def test_reports_without_a_record_belong_to_the_best_checkpoint(derived, damaged):
    """As the reports of earlier versions."""
    for file in derived.rglob("*.json"):
        file.write_text('{"checkpoint": "model_best.pth"}')
    if damaged:
        (derived / "model_best.pth").write_bytes(b"damaged")
    checkpoint.save(STATE | {"state_dict": {"w": torch.arange(3)}}, derived / "model_best.pth")
    gone = OF_BEST | {"test/result_val.json", "test/report_val.html"}
    assert gone == {
        name.removeprefix("replaced/") for name in files(derived) if "replaced/" in name
    }


def test_a_checkpoint_of_another_name_keeps_its_own_folder(tmp_path):
    for name, value in (("a", 1.0), ("b", 2.0)):
        path = tmp_path / f"{name}.pth"
        checkpoint.save(STATE | {"state_dict": {"w": torch.tensor(value)}}, path)
        make_report(tmp_path / name / "test" / "result.json", path)
    checkpoint.save(STATE, tmp_path / "a.pth")
    assert files(tmp_path) == {
        "a.pth", "b.pth", "b/test/result.json", "replaced/a/test/result.json",
    }  # fmt: skip


def test_a_second_replacement_overwrites_nothing(derived):
    for epoch in (3, 4):
        state = STATE | {"epoch": epoch, "state_dict": {"w": torch.full((3,), epoch)}}
        checkpoint.save(state, derived / "model_best.pth")
        make_report(derived / "test" / "result.json", derived / "model_best.pth")
    assert {"replaced/test/result.json", "replaced/test/result-2.json"} <= files(derived)


def test_folder_above_a_run_names_the_run(tmp_path):
    run = tmp_path / "parts" / "1126_093042"
    run.mkdir(parents=True)
    checkpoint.save(STATE, run / checkpoint.BEST)
    with pytest.raises(CheckpointError, match=f"pass a folder in it, -r {run}"):
        checkpoint.find(tmp_path / "parts")


def test_mean_without_a_standard_deviation_is_a_fault(tmp_path):
    checkpoint.save(STATE | {"input": {"shape": [1, 2, 2], "mean": [0.5]}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="input: should have mean and std, or neither"):
        checkpoint.load(tmp_path / "a.pth")
