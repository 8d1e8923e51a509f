"""Families of runs: every sample is judged once; the figures are scikit-learn's."""

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from tests.conftest import ROOT, save_images
from trainer import folds, search

SMALL = {"trainer.epochs": 2, "trainer.tensorboard": False}


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
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"<h1>{config['name']}</h1>" in page
    assert "3 folds, 45 samples: each was judged by a network that was trained on others" in page
    assert "The threshold was chosen on these samples, as high" in page
    assert "were not used to choose it" not in page
    assert "on the validation data" not in page
    assert "missed NG" in capsys.readouterr().out


def test_search_states_what_the_test_samples_say(digits, tmp_path, capsys):
    pytest.importorskip("optuna")
    config = digits(SMALL | {"trainer.epochs": 1, "trainer.monitor": "max val_accuracy"})
    for name, content in ("c.json", config), ("s.json", {"optimizer.args.lr": [1e-5, 2e-3]}):
        (tmp_path / name).write_text(json.dumps(content))
    files = [str(tmp_path / "c.json"), "--space", str(tmp_path / "s.json")]
    assert search.main(["-c", *files, "-n", "3"]) == 0
    [folder] = (tmp_path / "saved" / "search").glob("*/*")
    best = json.loads((folder / "family.json").read_text())["best"]
    [run] = (folder / "models" / best).glob("*/")
    accuracy = json.loads((run / "test" / "result.json").read_text())["accuracy"]
    assert f"is {accuracy:.4g} by {best.replace('trial', 'trial ')}" in capsys.readouterr().out


def test_example_that_extends_another_works(tmp_path, data_dir):
    """And whose task is not classification."""
    changes = ["trainer.epochs=1", "trainer.tensorboard=false", f"trainer.save_dir={tmp_path}",
               f"data_loader.args.data_dir={data_dir}"]  # fmt: skip
    (tmp_path / "base.json").write_text((ROOT / "config.json").read_text(encoding="utf-8"))
    config = {
        "extends": "base.json", "task": "MultiLabelTask", "metrics": [],
        "data_loader": {"type": "TwoDigitsDataLoader"},
        "loss": "binary_cross_entropy_with_logits",
        "lr_scheduler": {"type": "OneCycleLR", "args": {"max_lr": 0.01}},
    }  # fmt: skip
    (tmp_path / "labels.json").write_text(json.dumps(config | {"trainer": {"monitor": "off"}}))
    assert folds.main(["-c", str(tmp_path / "labels.json"), "-k", "3", "-s", *changes]) == 0
    [folder] = tmp_path.glob("folds/*/*")
    samples = [row["sample"] for row in rows(folder / "predictions.csv")]
    assert len(samples) == len(set(samples)) > 100
