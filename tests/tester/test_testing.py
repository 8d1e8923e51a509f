"""test.py as a whole: its figures are those of scikit-learn."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

import test as test_script
from data_loader.data_loaders import DigitsDataLoader
from model.model import LeNet
from tests.conftest import ROOT, runs


def probabilities(run, loader, key="state_dict"):
    state = torch.load(run / "model_best.pth", weights_only=True)
    model = LeNet()
    model.load_state_dict(state[key] if key == "state_dict" else state[key]["state_dict"])
    model.eval()
    with torch.no_grad():
        parts = [(model(data).exp(), target) for data, target in loader]
    return torch.cat([p for p, _ in parts]).numpy(), torch.cat([t for _, t in parts]).numpy()


@pytest.mark.parametrize("ema", [None, 0.9])
def test_result_equals_what_scikit_learn_computes(digits, train, data_dir, tmp_path, capsys, ema):
    run = train(digits({"trainer.ema_decay": ema} if ema else {}), "--epochs", 3)
    before = runs(tmp_path)
    assert test_script.main(["-r", str(run)]) == 0
    assert runs(tmp_path) == before  # a test creates no run folder
    result = json.loads((run / "test" / "result.json").read_text())
    p, target = probabilities(
        run, DigitsDataLoader(str(data_dir)).for_subset("test"), "ema" if ema else "state_dict"
    )
    assert result["n"] == len(target) == 359
    assert result["accuracy"] == pytest.approx(accuracy_score(target, p.argmax(1)))
    assert result["loss"] == pytest.approx(log_loss(target, p / p.sum(1, keepdims=True)), rel=1e-4)
    assert result["top_k_acc"] == pytest.approx(
        np.mean([t in row.argsort()[-3:] for t, row in zip(target, p, strict=True)])
    )
    assert result["seconds"] > 0
    assert result["samples_per_second"] == pytest.approx(359 / result["seconds"])
    assert f"accuracy            {result['accuracy']:.4f}" in capsys.readouterr().out


def test_other_splits_and_another_config(digits, train, data_dir, tmp_path):
    run = train(digits())
    for split, count in (("val", 144), ("train", 1294)):
        assert test_script.main(["-r", str(run), "--split", split]) == 0
        assert json.loads((run / "test" / f"result_{split}.json").read_text())["n"] == count
    other = digits({"metrics": ["accuracy"], "loss": "nll_loss", "arch.args.num_classes": 3})
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert (
        test_script.main(
            ["-r", str(run / "checkpoint-epoch1.pth"), "-c", str(tmp_path / "other.json")]
        )
        == 0
    )
    result = json.loads((run / "test" / "result.json").read_text())
    assert result["checkpoint"] == "checkpoint-epoch1.pth"
    assert "top_k_acc" not in result


def test_check_tests_one_batch_and_writes_nothing(digits, train, capsys):
    run = train(digits())
    assert test_script.main(["-r", str(run), "--check"]) == 0
    assert "check passed" in capsys.readouterr().out
    assert not (run / "test").exists()


def test_own_test_data_loader(digits, train):
    section = {"type": "DigitsDataLoader", "args": {"batch_size": 7, "subset": "val"}}
    config = digits({"test_data_loader": section, "data_loader.args.validation_split": 100})
    section["args"]["data_dir"] = config["data_loader"]["args"]["data_dir"]
    section["args"]["validation_split"] = 100
    run = train(config)
    assert test_script.main(["-r", str(run)]) == 0
    assert json.loads((run / "test" / "result.json").read_text())["n"] == 100


def test_split_val_without_validation_data_is_an_error(digits, train, capsys):
    run = train(digits({"data_loader.args.validation_split": 0, "trainer.monitor": "min loss"}))
    assert test_script.main(["-r", str(run), "--split", "val"]) == 2
    assert "no validation data" in capsys.readouterr().err


def test_missing_resume_path_is_an_error(capsys):
    assert test_script.main(["-c", "config.json"]) == 2
    assert "Pass -r PATH" in capsys.readouterr().err


def test_help_does_not_load_torch():
    code = (
        "import sys, test\n"
        "try: test.main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'tensorboard'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for flag in ("--config", "--resume", "--device", "--set", "--check", "--split"):
        assert flag in done.stdout
