"""Families of folds: a cut-off one is the same, and the interval keeps what it promises."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from sklearn.model_selection import KFold

from tests.conftest import ROOT, save_images
from trainer import folds

SMALL = {"trainer.epochs": 2, "trainer.tensorboard": False}


@pytest.mark.slow
def test_repetitions_share_out_anew(family):
    folder = family({"trainer.epochs": 1}, "--repeat", "2")
    about = json.loads((folder / "family.json").read_text())
    members = [result["member"] for result in about["results"]]
    assert members == ["fold1", "fold2", "fold3", "fold1-2", "fold2-2", "fold3-2"]
    first, second = (
        about["spread"]["val_loss"]["each"][:3],
        about["spread"]["val_loss"]["each"][3:],
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


@pytest.mark.parametrize("target", ["NG", "OK"])
def test_class_that_some_folds_would_lack_is_said(tmp_path, image_config, capsys, target):
    save_images(tmp_path / "parts", {"NG": 3, "OK": 12}, size=(16, 16))
    config = image_config(tmp_path / "parts", split=[0.8, 0.1, 0.1])
    config["inspection"] = {"target": target}
    config["trainer"] |= {"epochs": 1, "save_dir": str(tmp_path / "saved")}
    (tmp_path / "parts.json").write_text(json.dumps(config))
    code = folds.main(["-c", str(tmp_path / "parts.json"), "-k", "4"])
    said = capsys.readouterr()
    if target == "NG":
        assert code == 2
        assert "-k 4: there are only 3 samples of NG" in said.err
    else:
        assert "warning: fewer than 4 samples: NG (3)" in said.out


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
        found[name] = about["results"], spread
    assert found["killed"] == found["whole"]
