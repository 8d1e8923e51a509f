"""Folds: every sample is judged once, figures are scikit-learn's, a cut-off family is the same."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from sklearn.metrics import accuracy_score
from sklearn.model_selection import KFold

from tests.conftest import ROOT, save_images
from trainer import folds

SMALL = {"trainer.epochs": 2, "trainer.tensorboard": False}


@pytest.fixture
def family(digits, tmp_path, monkeypatch):
    """A function that trains three folds of the digits; returns the family's folder."""

    def train(changes=None, *arguments):
        config = digits(SMALL | (changes or {}))
        file = tmp_path / "folds.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        assert folds.main(["-c", str(file), "-k", "3", *arguments]) == 0
        [folder] = (tmp_path / "saved" / "folds").glob("*/*")
        return folder

    return train


def rows(file):
    with open(file, encoding="utf-8-sig", newline="") as text:
        return list(csv.DictReader(text))


def test_every_sample_is_judged_once_by_a_network_that_did_not_know_it(family, capsys):
    folder = family()
    judged = rows(folder / "predictions.csv")
    assert sorted(int(row["sample"]) for row in judged) == list(range(len(judged)))
    by_sample = {}
    for run in folder.glob("models/*/*"):
        fold = rows(run / "test" / "predictions.csv")
        by_sample |= {row["sample"]: row for row in fold}
    assert len(by_sample) <= len(judged)  # names within a fold count from 0
    about = json.loads((folder / "family.json").read_text())
    result = json.loads((folder / "result.json").read_text())
    accuracy = accuracy_score([r["true"] for r in judged], [r["predicted"] for r in judged])
    assert result["accuracy"] == pytest.approx(accuracy)
    each = about["spread"]["test_accuracy"]["each"]
    sizes = [len(rows(run / "test" / "predictions.csv"))
             for run in sorted(folder.glob("models/*/*"))]  # fmt: skip
    assert np.average(each, weights=sizes) == pytest.approx(accuracy)
    assert about["spread"]["test_accuracy"]["spread"] == pytest.approx(np.std(each, ddof=1))
    assert (about["state"], about["done"]) == ("finished", 3)
    assert (folder / "report.html").exists()
    assert "95 % of the mean" in capsys.readouterr().out


def test_inspection_counts_the_targets_of_all_folds(tmp_path, image_config, capsys):
    save_images(tmp_path / "parts", {"NG": 15, "OK": 30}, size=(16, 16))
    config = image_config(tmp_path / "parts", split=[0.8, 0.1, 0.1])
    config["inspection"] = {"target": "NG"}
    config["trainer"] |= {"epochs": 1, "save_dir": str(tmp_path / "saved")}
    file = tmp_path / "parts.json"
    file.write_text(json.dumps(config))
    assert folds.main(["-c", str(file), "-k", "3"]) == 0
    [folder] = (tmp_path / "saved" / "folds").glob("*/*")
    total = json.loads((folder / "family.json").read_text())["inspection"]
    assert (total["targets"], total["others"]) == (15, 30)
    judged = rows(folder / "predictions.csv")
    assert len({row["sample"] for row in judged}) == 45
    result = json.loads((folder / "result.json").read_text())
    assert result["inspection"]["at_threshold"]["targets"] == 15
    assert "missed NG" in capsys.readouterr().out


def test_repetitions_share_out_anew(family):
    folder = family({"trainer.epochs": 1}, "--repeat", "2")
    about = json.loads((folder / "family.json").read_text())
    members = [result["member"] for result in about["results"]]
    assert members == ["fold1", "fold2", "fold3", "fold1-2", "fold2-2", "fold3-2"]
    first, second = (
        about["spread"]["test_loss"]["each"][:3],
        about["spread"]["test_loss"]["each"][3:],
    )
    assert set(first).isdisjoint(second)


def test_interval_covers_the_true_mean_as_often_as_it_says():
    generator, covered = np.random.default_rng(0), 0
    for _ in range(400):
        data = generator.normal(3.0, 1.0, 60)
        each = [data[test].mean() for _, test in KFold(6).split(data)]
        found = folds.spreads([{"value": v} for v in each], 6)["value"]
        covered += found["low"] <= 3.0 <= found["high"]
    assert covered >= 0.95 * 400


@pytest.mark.parametrize(("arguments", "message"), [
    (["-c", "config.json", "-k", "2"], "at least 3"),
    (["-r", "nowhere"], "is not a family of runs"),
    (["-c", "config.json", "-s", "data_loader.args.batch=3"], 'takes no "batch"'),
])  # fmt: skip
def test_mistakes_are_sentences(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert folds.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_family_killed_in_the_third_fold_equals_the_unbroken_one(digits, tmp_path):
    command = [sys.executable, "-m", "trainer.folds"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = {}
    for name in ("whole", "killed"):
        config = digits(SMALL | {"trainer.epochs": 6, "trainer.save_every": 5})
        config["trainer"]["save_dir"] = str(tmp_path / name)
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(config))
        arguments = ["-c", str(file), "-k", "5"]
        process = subprocess.Popen([*command, *arguments], cwd=ROOT, env=environment)
        if name == "killed":
            for _ in range(6000):
                if list((tmp_path / name).glob("folds/*/*/models/fold3/*/checkpoint-epoch2.pth")):
                    break
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
            [folder] = (tmp_path / name).glob("folds/*/*")
            assert json.loads((folder / "family.json").read_text())["state"] == "unfinished"
            process = subprocess.Popen([*command, "-r", str(folder)], cwd=ROOT, env=environment)
        assert process.wait() == 0
        [folder] = (tmp_path / name).glob("folds/*/*")
        about = json.loads((folder / "family.json").read_text())
        for result in about["results"]:
            result.pop("run")
        spread = {k: v for k, v in about["spread"].items() if "second" not in k}
        found[name] = about["results"], spread, rows(folder / "predictions.csv")
    assert found["killed"] == found["whole"]
