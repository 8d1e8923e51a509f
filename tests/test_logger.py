"""What a run shows and leaves behind, read back by TensorBoard's own reader."""

import csv
import os

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from logger import TensorboardWriter
from logger.logger import ConsoleFormatter
from logger.metrics_csv import MetricsFile
from utils import checkpoint


def events(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "images": 0})
    accumulator.Reload()
    return accumulator


@pytest.fixture
def board(digits, train):
    """Log folder and TensorBoard events of a run of three epochs, of which the last came after a resume."""
    import train as script

    config = digits({"trainer.tensorboard": True})
    run = train(config, "--epochs", 4)
    assert script.main(["-r", str(run / "checkpoint-epoch2.pth"), "--epochs", "3"]) == 0
    folder = checkpoint.log_dir_of(run)
    return folder, events(folder)


def test_tensorboard_shows_each_curve_once_on_one_axis(board):
    folder, accumulator = board
    tags = accumulator.Tags()
    scalars = {"loss", "accuracy", "top_k_acc"}
    expected = {f"{name}/{part}" for name in scalars for part in ("train", "valid")}
    expected |= {"lr/train", "samples_per_second/train", "seconds/train"}
    assert set(tags["scalars"]) == expected
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("loss/valid", "accuracy/train", "lr/train"):
        column = f"val_{name.split('/')[0]}" if name.endswith("valid") else name.split("/")[0]
        curve = accumulator.Scalars(name)
        # three epochs of 13 batches; what the run had written of epochs 3 and 4 before it went back is purged
        assert [point.step for point in curve] == [13, 26, 39]
        assert [point.value for point in curve] == pytest.approx([float(row[column]) for row in rows])
    steps = [point.step for point in accumulator.Scalars("loss/train")]
    assert steps == list(range(1, 40))


def test_tensorboard_has_pictures_parameters_and_hyperparameters(board):
    _, accumulator = board
    tags = accumulator.Tags()
    assert any(tag.startswith("input/train") for tag in tags["images"])
    assert {"parameters/conv1.weight", "parameters/fc2.bias"} <= set(tags["histograms"])
    counted = accumulator.Histograms("parameters/fc1.weight")[0].histogram_value
    assert counted.num == 320 * 50
    assert sum(counted.bucket) == counted.num
    assert accumulator.SummaryMetadata("_hparams_/session_start_info") is not None


def test_histograms_wait_until_training_has_earned_them_and_do_not_grow(tmp_path):
    model = nn.Linear(2000, 500)  # a million parameters: 100,000 are looked at
    writer = TensorboardWriter(tmp_path)
    for step, training_seconds in enumerate([0.0, 0.0, 1e9, 0.0]):  # the first is free, the next must be earned
        writer.set_step(step)
        writer.add_parameters(model, training_seconds)
    writer.close()
    written = events(tmp_path).Histograms("parameters/weight")
    assert [histogram.step for histogram in written] == [0, 2]
    assert written[0].histogram_value.num == pytest.approx(100_000, rel=0.1)


def test_parameters_that_are_no_numbers_do_not_stop_the_run(tmp_path):
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, float("nan"))
    writer = TensorboardWriter(tmp_path)
    writer.add_parameters(model, 1e9)
    writer.close()
    assert events(tmp_path).Tags()["histograms"] == ["parameters/bias"]


def test_writer_wraps_torchs_and_knows_the_step(tmp_path):
    writer = TensorboardWriter(tmp_path)
    writer.set_step(7, "valid")
    writer.add_scalar("score", 0.5)
    writer.add_image("picture", torch.rand(3, 4, 4))
    writer.close()
    read = events(tmp_path)
    assert [(p.step, p.value) for p in read.Scalars("score/valid")] == [(7, 0.5)]
    assert read.Tags()["images"] == ["picture/valid"]
    with pytest.raises(AttributeError, match="add_scaler"):
        writer.add_scaler("x", 1)


def test_switched_off_it_writes_nothing(tmp_path):
    writer = TensorboardWriter(tmp_path / "log", enabled=False)
    writer.add_scalar("x", 1.0)
    writer.add_parameters(nn.Linear(1, 1), 1.0)
    writer.add_hyperparameters({"lr": 1}, ["loss"])
    writer.close()
    assert not (tmp_path / "log").exists()


def test_metrics_file_gains_columns_and_forgets_later_rows(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    file.add({"epoch": 1, "loss": 0.1 + 0.2})
    file.add({"epoch": 2, "loss": 0.5, "f1": 1.0})
    again = MetricsFile(tmp_path / "metrics.csv")
    again.resume(1)
    again.add({"epoch": 2, "loss": 0.25})
    with open(tmp_path / "metrics.csv", newline="") as read:
        assert list(csv.DictReader(read)) == [
            {"epoch": "1", "loss": repr(0.1 + 0.2), "f1": ""},
            {"epoch": "2", "loss": "0.25", "f1": ""},
        ]


@pytest.mark.parametrize(("verbosity", "lines", "network"), [(0, 0, False), (1, 2, False), (2, 2, True)])
def test_verbosity(digits, train, capsys, verbosity, lines, network):
    run = train(digits({"trainer.verbosity": verbosity}))
    captured = capsys.readouterr()
    assert sum(line.startswith("epoch ") for line in captured.out.splitlines()) == lines
    assert ("multiply-adds" in captured.out) == network
    assert ("test.py -r" in captured.out) == (verbosity > 0)
    assert captured.err == ""  # no bar where there is no terminal
    log = (checkpoint.log_dir_of(run) / "info.log").read_text(encoding="utf-8")
    assert log.count("val_accuracy") == 2  # the file is the same for each


def test_end_of_a_run_says_where_everything_is(digits, train, capsys):
    run = train(digits({"trainer.tensorboard": True}))
    out = capsys.readouterr().out
    for said in (run / "model_best.pth", checkpoint.log_dir_of(run), f"test.py -r {run}", "tensorboard --logdir"):
        assert str(said) in out


def test_colors_only_on_a_terminal_without_no_color(monkeypatch):
    import logging
    import sys

    record = logging.LogRecord("x", logging.WARNING, "f", 1, "careful", None, None)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert ConsoleFormatter().format(record) == "warning: careful"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert ConsoleFormatter().format(record) == "\033[33mwarning: careful\033[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert ConsoleFormatter().format(record) == "warning: careful"


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_terminal_gets_a_bar(digits, train, monkeypatch, capsys):
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    train(digits({"trainer.verbosity": 2}))
    assert "epoch 2/2" in capsys.readouterr().err
