"""The same command gives the same bits, and a run says what they depend on."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT, assert_same, last_checkpoint, runs, save_images
from utils import checkpoint


def bits(run):
    """All that a run's last checkpoint holds, but for what names the run."""
    state = last_checkpoint(run)
    return {key: value for key, value in state.items() if key not in ("config", "sessions")}


CHANGES = {
    "plain": {},
    "average, workers": {"trainer.ema_decay": 0.9, "data_loader.args.num_workers": 2},
    "deterministic, bf16": {"engine": {"deterministic": True, "precision": "bf16"}},
}


@pytest.mark.usefixtures("workers_for_memory")
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_same_command_gives_the_same_bits(digits, train, changes):
    one, two = (train(digits({"trainer.len_epoch": 4, **changes})) for _ in range(2))
    assert_same(bits(one), bits(two))
    other = train(digits({"trainer.len_epoch": 4, "seed": 6, **changes}))
    with pytest.raises(AssertionError):
        assert_same(bits(one)["state_dict"], bits(other)["state_dict"])


def test_same_command_gives_the_same_bits_with_augmented_images(image_config, train, tmp_path):
    save_images(tmp_path / "images" / "train", {"NG": 20, "OK": 30})
    rotation = {"type": "RandomRotation", "args": {"degrees": 9}}
    transforms = {"train": ["RandomHorizontalFlip", rotation], "eval": []}
    arguments = {"validation_split": 0.2, "transforms": transforms, "num_workers": 2}
    config = image_config(tmp_path / "images", **arguments)
    one, two = train(config), train(config)
    assert_same(bits(one), bits(two))


@pytest.mark.slow
def test_same_command_in_other_processes_gives_the_same_bits(image_config, tmp_path):
    """Hashes of texts differ between processes."""
    save_images(tmp_path / "images" / "train", {"NG": 20, "OK": 30})
    config = image_config(tmp_path / "images", validation_split=0.2, num_workers=1)
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "train.py", "-c", str(tmp_path / "config.json"), "-d", "cpu"]
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=600)
    assert_same(*map(bits, runs(tmp_path)))


def test_info_shows_what_a_run_depends_on(digits, train, resume, tmp_path, capsys):
    import train as script

    config = digits({"trainer.len_epoch": 2, "trainer.epochs": 1})
    first = train(config)
    second = train(config, "-r", first, "-d", "cpu")
    resume(second, "--epochs", 3)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    assert script.main(["-r", str(second), "--info"]) == 0
    shown = capsys.readouterr().out
    state, start = last_checkpoint(second), checkpoint.load(first / "model_best.pth")
    sessions = state["sessions"]
    assert [session["epoch"] for session in sessions] == [1, 2]
    assert sessions[0]["command"].startswith("python train.py -c ")
    assert sessions[0]["command"].endswith(f"-r {first} -d cpu")
    assert sessions[1]["command"] == f"python train.py -r {second} --epochs 3"
    words = [state["origin"]["digest"], start["origin"]["digest"], "seed         5", "3 of 3"]
    words += [f"torch {torch.__version__}", f"threads {torch.get_num_threads()}", "min val_loss"]
    words += [session["command"] for session in sessions]
    for word in words:
        assert word in shown
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--info"], "--info: of which run? Also pass -r PATH"),
        (["--info", "-r", "x"], "no checkpoint"),
    ],
)
def test_info_without_a_run_is_a_sentence(arguments, message, capsys):
    import train as script

    assert script.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("loader", ["DigitsDataLoader", {"type": "DigitsDataLoader"}, None])
def test_info_hides_what_would_move_the_cursor(tmp_path, capsys, loader):
    import train as script

    state = {"arch": "\x1b[2J", "epoch": 1, "state_dict": {"w": torch.ones(1)}}
    state["config"] = {} if loader is None else {"data_loader": loader}
    torch.save(state, tmp_path / "x.pth")
    assert script.main(["-r", str(tmp_path / "x.pth"), "--info"]) == 0
    assert "\x1b" not in capsys.readouterr().out
