"""The scripts as a whole: what test.py reports, what devices mean, what importing costs."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

import test as test_script
import train as train_script
from data_loader.data_loaders import DigitsDataLoader
from model.model import LeNet
from tests.conftest import ROOT, runs
from utils.engine import Engine, unwrap
from utils.errors import UserError


def probabilities(run, loader, key="state_dict"):
    state = torch.load(run / "model_best.pth", weights_only=True)
    model = LeNet()
    model.load_state_dict(state[key] if key == "state_dict" else state[key]["state_dict"])
    model.eval()
    with torch.no_grad():
        parts = [(model(data).exp(), target) for data, target in loader]
    return torch.cat([p for p, _ in parts]).numpy(), torch.cat([t for _, t in parts]).numpy()


@pytest.mark.parametrize("ema", [None, 0.9])
def test_test_reports_what_scikit_learn_computes(digits, train, data_dir, tmp_path, capsys, ema):
    run = train(digits({"trainer.ema_decay": ema} if ema else {}), "--epochs", 3)
    before = runs(tmp_path)
    assert test_script.main(["-r", str(run)]) == 0
    assert runs(tmp_path) == before  # a test is no run
    result = json.loads((run / "test" / "result.json").read_text())
    p, target = probabilities(run, DigitsDataLoader(str(data_dir)).of_subset("test"), "ema" if ema else "state_dict")
    assert result["n"] == len(target) == 359
    assert result["accuracy"] == pytest.approx(accuracy_score(target, p.argmax(1)))
    assert result["loss"] == pytest.approx(log_loss(target, p / p.sum(1, keepdims=True)), rel=1e-4)
    assert result["top_k_acc"] == pytest.approx(np.mean([t in row.argsort()[-3:] for t, row in zip(target, p, strict=True)]))
    assert result["seconds"] > 0
    assert result["samples_per_second"] == pytest.approx(359 / result["seconds"])
    assert f"accuracy            {result['accuracy']:.4f}" in capsys.readouterr().out


def test_other_splits_another_configuration_and_a_file(digits, train, data_dir, tmp_path):
    run = train(digits())
    for split, count in (("val", 144), ("train", 1294)):
        assert test_script.main(["-r", str(run), "--split", split]) == 0
        assert json.loads((run / "test" / f"result_{split}.json").read_text())["n"] == count
    other = digits({"metrics": ["accuracy"], "loss": "nll_loss", "arch.args.num_classes": 3})
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert test_script.main(["-r", str(run / "checkpoint-epoch1.pth"), "-c", str(tmp_path / "other.json")]) == 0
    result = json.loads((run / "test" / "result.json").read_text())
    assert result["checkpoint"] == "checkpoint-epoch1.pth"
    assert "top_k_acc" not in result


def test_check_tries_one_batch_and_writes_nothing(digits, train, capsys):
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


def test_test_without_validation_data_says_so(digits, train, capsys):
    run = train(digits({"data_loader.args.validation_split": 0, "trainer.monitor": "min loss"}))
    assert test_script.main(["-r", str(run), "--split", "val"]) == 2
    assert "no validation data" in capsys.readouterr().err


def test_without_arguments_it_asks_for_a_configuration(capsys):
    assert train_script.main([]) == 2
    assert "-c FILE" in capsys.readouterr().err


def test_a_test_asks_for_a_network(capsys):
    assert test_script.main(["-c", "config.json"]) == 2
    assert "Say -r PATH" in capsys.readouterr().err


def test_verbose_shows_the_traceback(capsys):
    assert train_script.main(["-c", "nowhere.json", "--verbose"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_help_needs_no_torch():
    code = (
        "import sys, train, test\n"
        "for script in (train, test):\n"
        "    try: script.main(['--help'])\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'tensorboard'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for flag in ("--config", "--resume", "--device", "--set", "--check", "--learning_rate", "--split"):
        assert flag in done.stdout


def test_the_default_run_imports_only_what_it_uses(digits, train, tmp_path):
    """scikit-learn, torchvision and torchmetrics take seconds each."""
    train(digits())  # the digits are there now, as after a first run
    code = (
        f"import sys, train\ncode = train.main(['-c', {str(tmp_path / 'config.json')!r}])\n"
        "heavy = {'sklearn', 'torchvision', 'torchmetrics', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("device", "n_gpu", "gpus", "expected", "note"),
    [
        (None, 1, 0, "cpu", None),
        (None, 1, 2, "cuda:0", None),
        (None, 0, 2, "cpu", None),
        ("cpu", 1, 2, "cpu", None),
        ("1", 1, 2, "cuda:1", None),
        ("cuda:1", 1, 2, "cuda:1", None),
        ("0,1", 1, 0, "cpu", "has none; using the CPU"),
        ("2,3", 1, 3, "cuda:2", "has 3; using GPU 2"),
        (None, 4, 2, "cuda:0", "has 2; using GPU 0"),
        ("0,1", 1, 2, "cuda:0", "this is done on one GPU"),
    ],
)
def test_devices(monkeypatch, device, n_gpu, gpus, expected, note):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    engine = Engine(device, n_gpu)
    assert str(engine.device) == expected
    assert (note in engine.notes[0]) if note else not engine.notes


def test_more_devices_than_there_are_is_a_warning(digits, train, capsys):
    if torch.cuda.is_available():
        pytest.skip("there are GPUs")
    train(digits(), "-d", "0,1")
    assert "warning: GPU 0, 1 asked for, but this machine has none; using the CPU" in capsys.readouterr().out
    train(digits(), "-d", "gpu", code=2)
    assert '-d gpu: should be "cpu"' in capsys.readouterr().err
    with pytest.raises(UserError):
        Engine("-1")


def test_unwrap_gives_the_network_itself():
    model = LeNet()
    assert unwrap(Engine("cpu").prepare(model)) is model
    assert unwrap(torch.nn.DataParallel(model)) is model
    assert unwrap(torch.compile(model)) is model
