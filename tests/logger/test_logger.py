"""What a run shows and records, read back by TensorBoard's own reader, and parts of reports."""

import csv
import errno
import logging
import os
import re
import sys

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from logger import TensorboardWriter
from logger.charts import to_pil_image
from logger.files import file_names, write_csv
from logger.logger import ConsoleFormatter, setup_logging
from logger.metrics_csv import MetricsFile
from logger.page import write_html
from logger.recorder import Recorder, next_commands
from utils import run_folder


def events(folder):
    accumulator = EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "histograms": 0, "images": 0}
    )
    accumulator.Reload()
    return accumulator


@pytest.fixture
def board(digits, train):
    """Log folder and TensorBoard events of a run of three epochs, the last one after a resume."""
    import train as script

    config = digits({"trainer.tensorboard": True})
    run = train(config, "--epochs", 4)
    assert script.main(["-r", str(run / "checkpoint-epoch2.pth"), "--epochs", "3"]) == 0
    folder = run_folder.log_dir_for(run)
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
        # three epochs of 13 batches; what was written of epochs 3 and 4 before the resume is purged
        assert [point.step for point in curve] == [13, 26, 39]
        assert [point.value for point in curve] == pytest.approx(
            [float(row[column]) for row in rows]
        )
    steps = [point.step for point in accumulator.Scalars("loss/train")]
    assert steps == list(range(1, 40))


def test_tensorboard_has_images_parameters_and_hyperparameters(board):
    _, accumulator = board
    tags = accumulator.Tags()
    assert any(tag.startswith("input/train") for tag in tags["images"])
    assert {"parameters/conv1.weight", "parameters/fc2.bias"} <= set(tags["histograms"])
    counted = accumulator.Histograms("parameters/fc1.weight")[0].histogram_value
    assert counted.num == 320 * 50
    assert sum(counted.bucket) == counted.num
    assert accumulator.SummaryMetadata("_hparams_/session_start_info") is not None


def test_histograms_take_a_small_share_of_time_and_do_not_grow(tmp_path):
    model = nn.Linear(2000, 500)  # a million parameters: 100,000 are sampled
    writer = TensorboardWriter(tmp_path)
    # the first is always written, later ones only within their share of the training time
    for step, training_seconds in enumerate([0.0, 0.0, 1e9, 0.0]):
        writer.set_step(step)
        writer.add_parameters(model, training_seconds)
    writer.close()
    written = events(tmp_path).Histograms("parameters/weight")
    assert [histogram.step for histogram in written] == [0, 2]
    assert written[0].histogram_value.num == pytest.approx(100_000, rel=0.1)


def test_parameters_that_are_not_finite_do_not_stop_the_run(tmp_path):
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, float("nan"))
    writer = TensorboardWriter(tmp_path)
    writer.add_parameters(model, 1e9)
    writer.close()
    assert events(tmp_path).Tags()["histograms"] == ["parameters/bias"]


def test_writer_wraps_torchs_writer_and_knows_the_step(tmp_path):
    writer = TensorboardWriter(tmp_path)
    writer.set_step(7, "valid")
    writer.add_scalar("score", 0.5)
    writer.add_image("image", torch.rand(3, 4, 4))
    writer.close()
    read = events(tmp_path)
    assert [(p.step, p.value) for p in read.Scalars("score/valid")] == [(7, 0.5)]
    assert read.Tags()["images"] == ["image/valid"]
    with pytest.raises(AttributeError, match="add_scaler"):
        writer.add_scaler("x", 1)


def test_disabled_writer_writes_nothing(tmp_path):
    writer = TensorboardWriter(tmp_path / "log", enabled=False)
    writer.add_scalar("x", 1.0)
    writer.add_parameters(nn.Linear(1, 1), 1.0)
    writer.add_hyperparameters({"lr": 1}, ["loss"])
    writer.close()
    assert not (tmp_path / "log").exists()


def test_metrics_file_gains_columns_and_drops_later_rows(tmp_path):
    first, second = {"epoch": 1, "loss": 0.1 + 0.2}, {"epoch": 2, "loss": 0.5, "f1": 1.0}
    file = MetricsFile(tmp_path / "metrics.csv")
    file.write([first])
    file.write([first, second])
    with open(tmp_path / "metrics.csv", newline="") as read:
        [row, _] = csv.DictReader(read)
    assert row == {"epoch": "1", "loss": repr(0.1 + 0.2), "f1": ""}
    again = MetricsFile(tmp_path / "metrics.csv")
    assert again.read() == [first, second]
    again.write([first])
    again.write([first, {"epoch": 2, "loss": 0.25}])
    assert again.read() == [first, {"epoch": 2, "loss": 0.25}]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize(
    ("encoding", "delimiter", "point"),
    [("utf-8-sig", ",", "."), ("cp932", ";", ","), ("utf-8", "\t", ".")],
)
@pytest.mark.parametrize("when", ["before a resume", "during the run"])
def test_metrics_file_saved_by_a_spreadsheet_is_kept(tmp_path, encoding, delimiter, point, when):
    rows = [{"epoch": n, "loss": n / 8, "recall_疵": 0.5} for n in (1, 2, 3)]
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path)
    file.write(rows[:2])
    text = path.read_text("utf-8").replace(",", delimiter).replace(".", point)
    path.write_bytes(text.replace("\r\n", "\n").encode(encoding))
    changed = path.read_bytes()
    assert MetricsFile(path).read() == rows[:2]  # as a run needs whose checkpoints have no rows
    (file if when == "during the run" else MetricsFile(path)).write(rows)
    assert MetricsFile(path).read() == rows
    assert (tmp_path / "metrics.changed.csv").read_bytes() == changed


def test_metrics_file_with_another_number_is_kept(tmp_path):
    rows = [{"epoch": n, "loss": n / 8} for n in (1, 2)]
    MetricsFile(tmp_path / "metrics.csv").write([rows[0] | {"loss": 9.0}, rows[1]])
    MetricsFile(tmp_path / "metrics.csv").write(rows)
    assert MetricsFile(tmp_path / "metrics.csv").read() == rows
    assert MetricsFile(tmp_path / "metrics.changed.csv").read()[0]["loss"] == 9.0


@pytest.mark.parametrize(
    ("verbosity", "lines", "network"), [(0, 0, False), (1, 2, False), (2, 2, True)]
)
def test_verbosity(digits, train, capsys, verbosity, lines, network):
    run = train(digits({"trainer.verbosity": verbosity}))
    captured = capsys.readouterr()
    assert sum(line.startswith("epoch ") for line in captured.out.splitlines()) == lines
    assert ("multiply-adds" in captured.out) == network
    assert ("model_best.pth" in captured.out) == (verbosity > 0)
    assert captured.err == ""  # no bar where there is no terminal
    log = (run_folder.log_dir_for(run) / "info.log").read_text(encoding="utf-8")
    assert log.count("val_accuracy") == 2  # the file is the same for each


PER_CLASS = ("NG", "OK", "疵 A/b", "scratched, deep", 'the "other"')


def test_epoch_fits_the_screen_and_names_every_number(tmp_path, caplog):
    log = {
        "loss": 0.43211,
        "accuracy": 0.87654,
        "top_k_acc": 0.98765,
        "samples_per_second": 12345.6,
    }
    log |= {f"recall_{name}": 0.5 for name in PER_CLASS}
    log |= {f"val_{name}": value for name, value in log.items() if name != "samples_per_second"}
    log |= {"lr": 0.001, "seconds": 1.2345}
    recorder = Recorder(tmp_path, tensorboard=True)
    recorder.begin(tmp_path, {"name": "x"}, ["loss", "recall", "val_recall"])
    with caplog.at_level("INFO", "trainer"):
        history = [{"epoch": 3, "step": 30, **log}]
        recorder.epoch(40, history, True, nn.Linear(1, 1))
        history.append({"epoch": 4, "step": 40, "loss": 1e-7, "lr": 0.1, "seconds": 2.0})
        recorder.epoch(40, history, False, nn.Linear(1, 1))
    recorder.writer.close()
    _, first, second = (record.getMessage() for record in caplog.records)
    assert second == "epoch  4/40  loss 1e-07  lr 0.1  seconds 2"
    lines = first.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("epoch  3/40  loss 0.4321  accuracy 0.8765  top_k_acc 0.9877")
    assert all(line.startswith(" " * 13) and line[13] != " " for line in lines[1:])
    assert lines[-1].endswith("lr 0.001  seconds 1.234  samples_per_second 12,346  * best")
    parts = "  ".join(line.strip() for line in lines).split("  ")
    assert parts[:2] == ["epoch", "3/40"]
    assert {part.rpartition(" ")[0] for part in parts[2:-1]} == set(log)
    with open(tmp_path / "metrics.csv", newline="", encoding="utf-8") as file:
        [row, _] = csv.DictReader(file)
    assert {k: float(v) for k, v in row.items()} == {"epoch": 3, "step": 30, **log}
    assert MetricsFile(tmp_path / "metrics.csv").read() == history
    read = events(tmp_path)
    for name in PER_CLASS:
        for part in ("train", "valid"):
            assert [point.value for point in read.Scalars(f"recall_{name}/{part}")] == [0.5]


def test_hyperparameters_are_written_with_the_first_number(tmp_path):
    writer = TensorboardWriter(tmp_path / "log")
    writer.add_hyperparameters({"lr": 0.1, "names": ["疵 A/b"]}, ["recall_疵 A/b/valid"])
    writer.close()
    assert not (tmp_path / "log").exists()
    for value in (1.0, 2.0):
        writer.add_scalar("x", value)
        writer.close()
    read = events(tmp_path / "log")
    session = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert "疵 A/b".encode() in session
    assert len(read.Scalars("x/train")) == 2


def test_end_of_a_run_shows_where_everything_is(digits, train, capsys):
    run = train(digits({"trainer.tensorboard": True}))
    out = capsys.readouterr().out
    for text in (
        run / "model_best.pth",
        run_folder.log_dir_for(run),
        "tensorboard --logdir",
        *next_commands(run),
    ):
        assert str(text) in out


def test_scripts_offer_what_can_be_done_next(tmp_path, monkeypatch):
    monkeypatch.setattr("logger.recorder.ROOT", tmp_path)
    command = "python {}.py -r saved/models/<name>/<run>"
    for name in ("try", "mend"):
        (tmp_path / f"{name}.py").write_text(f'"""Do it:  {command.format(name)}\n\nMore."""\n')
    (tmp_path / "begin.py").write_text('"""Begin:  python begin.py -c config.json"""\n')
    (tmp_path / "both.py").write_text(f'"""Both:\n\n{command.format("both")}\n"""\n')
    (tmp_path / "broken.py").write_bytes(b"\xff (")
    assert next_commands(tmp_path / "run") == [
        f"python try.py -r {tmp_path / 'run'}",
        f"python mend.py -r {tmp_path / 'run'}",
    ]


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


def test_file_names_are_valid_on_every_system():
    names = file_names(["a/b", "a?b", "A_B", "良品", "x" * 300, "良" * 300, "..", "end. "], ".jpg")
    assert names[:4] == ["a_b.jpg", "a_b-2.jpg", "A_B-3.jpg", "良品.jpg"]
    assert len({name.lower() for name in names}) == len(names)
    assert all(len(name.encode()) < 255 and not re.search(r'[\\/:*?"<>|]', name) for name in names)
    assert names[-2:] == ["_.jpg", "end.jpg"]


def test_images_show_what_the_network_saw():
    pixels = torch.randint(256, (3, 5, 7), dtype=torch.uint8)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    seen = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    image = np.array(to_pil_image(seen, {"mean": mean, "std": std}))
    assert np.array_equal(image, pixels.permute(1, 2, 0).numpy())


def test_page_from_a_template_in_any_folder(tmp_path):
    (tmp_path / "report.html").write_text(
        '{% extends "page.html" %}{% block title %}{{ title }}{% endblock %}'
        "{% block content %}{% include 'part.html' %}{% endblock %}"
    )
    (tmp_path / "part.html").write_text("<p>{{ text }}</p>")
    values = {"name": "Digits", "run": "0101", "title": "a title", "text": "<script> & co."}
    write_html(tmp_path / "out.html", tmp_path / "report.html", **values)
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "<title>Digits 0101: a title</title>" in page
    assert "<p>&lt;script&gt; &amp; co.</p>" in page
    assert "max-width: 1120px" in page  # page.html's style


FORMULAS = ["=cmd|'/C calc'!A0", "+1", "-a", "@SUM(A1)", "\t=1", "\r=1", "＝1"]


def test_cells_that_a_spreadsheet_would_compute_are_text(tmp_path):
    others = ["a=b", "1e-5", "-1.5", "-inf", "-2e-07", "", "不良"]
    write_csv(tmp_path / "a.csv", ["=head"], [[cell] for cell in [*FORMULAS, *others, -3, -0.5]])
    with open(tmp_path / "a.csv", encoding="utf-8-sig", newline="") as file:
        cells = [row[0] if row else "" for row in csv.reader(file)]
    assert cells == ["'=head", *(f"'{cell}" for cell in FORMULAS), *others, "-3", "-0.5"]


class Full:
    """What a pipe into `head`, or a full disk, is to Python."""

    encoding, name = "utf-8", "full"

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self):
        pass

    seek = lambda self, *place: 0  # noqa: E731
    tell = isatty = lambda self: 0


def test_lost_screen_and_full_disk_do_not_stop_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Full())
    setup_logging(tmp_path)
    for handler in logging.getLogger().handlers:
        handler.setStream(Full())
    logging.getLogger("a").warning("text")
    assert capsys.readouterr().err == ""
    logging.getLogger("a").warning("%d", "a mistake in a message")
    assert "Logging error" in capsys.readouterr().err
    logging.basicConfig(force=True, handlers=[logging.NullHandler()])


def test_log_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "info.log").mkdir()
    with pytest.raises(IsADirectoryError) as raised:
        setup_logging(tmp_path)
    assert raised.value.filename == str(tmp_path / "info.log")


@pytest.mark.parametrize("when", ["open", "write"])
def test_run_goes_on_without_tensorboard_if_the_disk_is_full(tmp_path, monkeypatch, caplog, when):
    from tensorboard.compat.tensorflow_stub.io import gfile

    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    name = "makedirs" if when == "open" else "append"
    monkeypatch.setattr(gfile.LocalFileSystem, name, fail)
    monkeypatch.setattr(gfile.LocalFileSystem, "write", fail)
    writer = TensorboardWriter(tmp_path / "log")
    for step in range(300):
        writer.set_step(step)
        writer.add_scalar("loss", 1.0)
    writer.close()
    assert caplog.text.count("no more TensorBoard files") == 1
    assert not writer.enabled
    assert "Exception in thread" not in caplog.text


def test_commands_can_be_pasted(tmp_path):
    run = tmp_path / "saved" / "models" / "a b;$HOME" / "1"
    for command in next_commands(run):
        assert command.endswith(f" -r '{run}'")
