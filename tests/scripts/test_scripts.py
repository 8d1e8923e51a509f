"""The command line that all scripts share, on train.py, and what importing costs."""

import subprocess
import sys

import train as train_script
from tests.conftest import ROOT


def test_missing_config_is_an_error(capsys):
    assert train_script.main([]) == 2
    assert "-c FILE" in capsys.readouterr().err


def test_verbose_shows_the_traceback(capsys):
    assert train_script.main(["-c", "nowhere.json", "--verbose"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_help_does_not_load_torch():
    code = (
        "import sys, train\n"
        "try: train.main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'tensorboard'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for flag in ("--config", "--resume", "--device", "--set", "--check", "--learning_rate"):
        assert flag in done.stdout


def test_default_run_loads_only_the_libraries_it_uses(digits, train, tmp_path):
    """scikit-learn, torchvision and torchmetrics take seconds each."""
    train(digits())  # the digits are there now, as after a first run
    code = (
        f"import sys, train\ncode = train.main(['-c', {str(tmp_path / 'config.json')!r}])\n"
        "slow = {'sklearn', 'torchvision', 'torchmetrics', 'matplotlib', 'pandas'}\n"
        "heavy = slow & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
