"""Runs of the version before November 2026 are resumed, and end as they ended then."""

import csv
from pathlib import Path

import pytest
import torch

from tests.conftest import last_checkpoint

OLD_RUNS = Path(__file__).parent / "old_runs"


@pytest.mark.parametrize("name", ["train", "stopped"])
def test_old_run_is_resumed_to_the_same_weights(old_run, resume, name):
    """From the end of an epoch, and from the middle of one; with EMA, momentum and OneCycleLR."""
    run, arguments = old_run(OLD_RUNS / name)
    resume(run, *arguments)
    expected = torch.load(OLD_RUNS / "train" / "expected.pt", weights_only=True)
    state = last_checkpoint(run)
    assert state["epoch"] == 3
    for key in ("state_dict", "ema"):
        one, two = (
            s[key] if key == "state_dict" else s[key]["state_dict"] for s in (state, expected)
        )
        torch.testing.assert_close(dict(one), dict(two), rtol=1e-4, atol=1e-6)
    assert state["monitor_best"] == pytest.approx(expected["monitor_best"])


def test_old_weights_start_a_new_run(old_run, train, digits, tmp_path, capsys):
    run, _ = old_run(OLD_RUNS / "train")
    args = {"data_dir": str(tmp_path / "parts"), "image_size": 16, "channels": 1}
    loader = {"type": "ImageFolderDataLoader", "args": args}
    config = digits({"arch": "LeNet", "data_loader": loader, "metrics": [], "trainer.epochs": 1})
    train(config, "-r", run / "checkpoint-epoch1.pth")
    assert "weights of" in capsys.readouterr().out


def test_metrics_of_an_old_run_are_those_of_the_resumed_one(old_run, resume, tmp_path):
    run, arguments = old_run(OLD_RUNS / "train")
    resume(run, *arguments)
    with open(OLD_RUNS / "train" / "metrics.csv", newline="", encoding="utf-8") as file:
        expected = list(csv.DictReader(file))[1:]
    with open(tmp_path / "saved/log/Parts/old/metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["2", "3"]
    for row, old in zip(rows, expected, strict=True):
        for name in ("loss", "accuracy", "val_loss", "val_accuracy", "lr"):
            assert float(row[name]) == pytest.approx(float(old[name]), rel=1e-4)
