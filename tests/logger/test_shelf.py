"""The page of all runs, and that of two: what runs really did, also of runs with parts missing."""

import csv
import json
import shutil

import pytest

import train as train_script
from logger import shelf
from utils import lock, run_folder


def rows(root):
    with open(root / "index.csv", encoding="utf-8-sig", newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def test_shelf_shows_what_runs_did_and_where_they_come_from(digits, train, tmp_path, capsys):
    first = train(digits({"trainer.monitor": "max val_accuracy"}))
    second = train(digits({"trainer.epochs": 1}), "-s", "optimizer.args.lr=0.01")
    file = tmp_path / "config.json"
    tuned = train(digits({"trainer.epochs": 1}), "-r", str(first))
    root = tmp_path / "saved"
    assert shelf.main([str(root), "--text"]) == 0
    assert "accuracy" in capsys.readouterr().out
    shown = rows(root)
    assert set(shown) == {first.name, second.name, tuned.name}
    row = shown[first.name]
    assert (row["kind"], row["state"], row["epochs"]) == ("train", "finished", "2/2")
    with open(run_folder.log_dir_for(first) / "metrics.csv", newline="") as table:
        best = max(float(line["val_accuracy"]) for line in csv.DictReader(table))
    assert row["validation"] == f"accuracy {best:.4g} (n 144)"
    assert row["samples"] == "1,294 + 144"
    assert shown[tuned.name]["kind"] == "fine-tune"
    assert shown[tuned.name]["from"] == f"{first.parent.name}/{first.name}"
    assert "optimizer.args.lr 0.01" in shown[second.name]["changed"]
    page = (root / "index.html").read_text(encoding="utf-8")
    assert f'href="#{first.parent.name}/{first.name}"' in page
    assert "http:" not in page
    assert "https:" not in page
    assert file.exists()


def test_state_of_a_run(digits, train, tmp_path, monkeypatch):
    run, root = train(digits()), tmp_path / "saved"
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | {"state": "training"}))
    shelf.write_shelf(root)
    assert rows(root)[run.name]["state"] == "broken off"
    monkeypatch.setattr(lock, "is_free", lambda folder: folder != run)  # of another process
    shelf.write_shelf(root)
    assert rows(root)[run.name]["state"] == "training"
    (run / "run.json").write_text("{broken")
    shelf.write_shelf(root)
    assert rows(root)[run.name]["state"] == "unreadable"
    (run / "run.json").unlink()  # as of a run of an earlier version
    shelf.write_shelf(root)
    assert rows(root)[run.name]["state"] == "finished"


def test_a_run_with_nothing_but_its_configuration_is_shown(digits, train, tmp_path):
    run, root = train(digits({"name": "a & 部品"})), tmp_path / "saved"
    shutil.rmtree(root / "log")
    for file in run.iterdir():
        if file.name != "config.json":
            file.unlink()
    (run / "test").mkdir()
    (run / "test" / "result.json").write_text("[1, 2]")
    assert shelf.main([str(root)]) == 0
    page = (root / "index.html").read_text(encoding="utf-8")
    assert "a &amp; 部品" in page
    assert rows(root)[run.name]["epochs"] == "0/2"


def test_folder_without_runs_is_said(tmp_path, capsys):
    assert shelf.main([str(tmp_path)]) == 2
    assert "holds no runs" in capsys.readouterr().err


def test_two_runs_side_by_side(digits, train, tmp_path, capsys):
    first, second = train(digits()), train(digits(), "-s", "optimizer.args.lr=0.01")
    assert shelf.main([str(tmp_path), "--compare", str(first), str(second)]) == 0
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "optimizer.args.lr" in page
    assert "data:image/svg+xml" in page
    assert "http:" not in page.replace("http://www.w3.org", "")
    assert shelf.main([str(tmp_path), "--compare", str(first), str(tmp_path / "saved")]) == 2
    assert "pass the folder of a run" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_run_says_how_it_ended(digits, train, tmp_path, monkeypatch, state):
    import signal

    if state == "stopped":
        from logger.recorder import Recorder

        original = Recorder.epoch

        def stop(self, *args):
            original(self, *args)
            signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(Recorder, "epoch", stop)
        (tmp_path / "c.json").write_text(json.dumps(digits()))
        assert train_script.main(["-c", str(tmp_path / "c.json")]) == 143
        [run] = (tmp_path / "saved" / "models").glob("*/*")
    else:
        run = train(digits())
    assert run_folder.read_run_file(run)["state"] == state
