"""A search finds a better configuration than the one it began with, also if it is cut off."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from trainer import search
from utils.config import config_file
from utils.run_folder import read_run_file

SPACE = {"optimizer.args.lr": {"log": [1e-5, 1e-1]}, "data_loader.args.batch_size": [100, 50]}


@pytest.fixture
def files(digits, tmp_path):
    """The paths of a configuration that learns too slowly, and of a space."""
    config = digits({"trainer.epochs": 3, "trainer.tensorboard": False})
    config["optimizer"] = {"type": "Adam", "args": {"lr": 1e-4}}
    config["trainer"]["monitor"] = "max val_accuracy"
    for name, content in ("config.json", config), ("space.json", SPACE):
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    return str(tmp_path / "config.json"), str(tmp_path / "space.json")


def test_best_of_some_trials_is_written_as_a_configuration(files, tmp_path, capsys):
    pytest.importorskip("optuna")
    config, space = files
    assert search.main(["-c", config, "--space", space, "-n", "7"]) == 0
    [folder] = (tmp_path / "saved" / "search").glob("*/*")
    about = json.loads((folder / "family.json").read_text())
    assert (about["state"], about["done"]) == ("finished", 7)
    states = [read_run_file(run)["state"] for run in folder.glob("models/*/*")]
    assert len(states) == 7
    output = capsys.readouterr().out
    assert states.count("stopped") == output.count("stopped early")
    best = config_file.read_layers(folder / "best.json")[0]
    assert best["optimizer"]["args"]["lr"] > 1e-4
    assert best["data_loader"]["args"]["batch_size"] in (50, 100)
    assert best["name"] == "Digits"
    log = folder / "log" / "trial1"
    first = next(log.glob("*/metrics.csv")).read_text().splitlines()
    assert len(first) == 4


@pytest.mark.slow
def test_runs_that_fall_behind_are_stopped_and_can_be_resumed(files, tmp_path):
    pytest.importorskip("optuna")
    config, _ = files
    space = tmp_path / "bad.json"
    space.write_text(json.dumps({"optimizer.args.lr": [1e-4, 1e-2, 3e-3, 2e-3, 5e-3, 1e-3, 1e-9]}))
    assert search.main(["-c", config, "--space", str(space), "-n", "12"]) == 0
    [folder] = (tmp_path / "saved" / "search").glob("*/*")
    runs = {run: read_run_file(run)["state"] for run in folder.glob("models/*/*")}
    stopped = [run for run, state in runs.items() if state == "stopped"]
    for run in stopped:
        rate = json.loads((run / "config.json").read_text())["optimizer"]["args"]["lr"]
        assert rate < 1e-2
    assert len(runs) == 12


def test_trial_that_diverges_does_not_end_the_search(files, tmp_path, capsys):
    pytest.importorskip("optuna")
    space = tmp_path / "wild.json"
    space.write_text(json.dumps({"optimizer.args.lr": [1e30, 2e-3]}))
    assert search.main(["-c", files[0], "--space", str(space), "-n", "6"]) == 0
    [folder] = (tmp_path / "saved" / "search").glob("*/*")
    best = config_file.read_layers(folder / "best.json")[0]
    assert best["optimizer"]["args"]["lr"] == 2e-3
    assert "failed" in capsys.readouterr().out


def test_search_that_goes_on_tries_new_values(files, tmp_path):
    pytest.importorskip("optuna")
    config, space = files
    fast = ["-s", "trainer.epochs=1"]
    assert search.main(["-c", config, "--space", space, "-n", "3", *fast]) == 0
    [folder] = (tmp_path / "saved" / "search").glob("*/*")
    assert search.main(["-r", str(folder), "-n", "6"]) == 0
    configs = [json.loads(file.read_text()) for file in folder.glob("configs/*.json")]
    rates = [config["optimizer"]["args"]["lr"] for config in configs]
    assert len(set(rates)) == 6


@pytest.mark.parametrize(("space", "message"), [
    ({}, "the file names no keys"),
    ({"optimizer.args.lr": {"log": [0, 1]}}, "lower end of \"log\" should be above 0"),
    ({"optimizer.args.lr": {"int": [3, 1]}}, "the lower one first"),
    ({"optimizer.args.lr": []}, "the list is empty"),
    ({"optimizer.args.lr": 3}, "should be a list of values"),
    ({"optimizer.args.rate": [1, 2]}, 'takes no "rate"'),
    ({"arch.args.num_classes": {"int": [0, 3]}}, "num_classes"),
])  # fmt: skip
def test_impossible_spaces_are_refused_before_anything_is_trained(files, tmp_path, capsys, space,
                                                                  message):  # fmt: skip
    (tmp_path / "space.json").write_text(json.dumps(space))
    assert search.main(["-c", files[0], "--space", str(tmp_path / "space.json")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "saved").exists()


@pytest.mark.slow
def test_search_of_20_trials_that_is_killed_finishes(files, tmp_path):
    pytest.importorskip("optuna")
    command = [sys.executable, "-m", "trainer.search"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    start = [*command, "-c", files[0], "--space", files[1], "-n", "20"]
    process = subprocess.Popen(start, cwd=ROOT, env=environment)
    for _ in range(6000):
        if [*(tmp_path / "saved").glob("search/*/*/models/trial8/*/*.pth")]:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    [folder] = (tmp_path / "saved" / "search").glob("*/*")
    assert json.loads((folder / "family.json").read_text())["state"] == "unfinished"
    done = subprocess.run([*command, "-r", str(folder)], cwd=ROOT, env=environment, check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    about = json.loads((folder / "family.json").read_text())
    assert (about["state"], about["done"]) == ("finished", 20)
    assert len([*folder.glob("models/*/*")]) == 20
    assert about["best"] != "trial1"
