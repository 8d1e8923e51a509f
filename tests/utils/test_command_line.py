"""How scripts start, and what they leave behind if they fail."""

import argparse
import errno
import gc
import json
import multiprocessing
import signal

import pytest

import train as train_script
from tests.conftest import DIGITS, last_checkpoint, runs
from tests.utils.processes import run_processes
from utils import run_folder
from utils.config import command_line
from utils.errors import RunError, UserError
from utils.screen import run_command

NETWORKS = """
import os, signal
from model.model import LeNet
class Failing(LeNet):
    def __init__(self, how: str):
        super().__init__()
        if how == "memory":
            raise RuntimeError("CUDA out of memory")
        if how == "interrupt":
            raise KeyboardInterrupt
        if how == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
"""
TRAINER = """
from trainer import Trainer
class Failing(Trainer):
    def before_epoch(self, epoch):
        if epoch == self.fails_in:
            raise ValueError("failing")
    fails_in = 2
class FailingAtOnce(Failing):
    fails_in = 1
"""


def test_the_garbage_collector_rests_while_modules_are_loaded():
    with command_line._fast_imports():
        assert not gc.isenabled()
        created = [[] for _ in range(2000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    old = {id(one) for one in gc.get_objects(generation=2)}
    assert all(id(one) in old for one in created)
    with pytest.raises(UserError), command_line._fast_imports():
        raise UserError("an error")
    assert gc.isenabled()


def folders(tmp_path):
    """All folders of runs and logs."""
    return [path.name for path in tmp_path.glob("saved/*/*/*")]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"data_loader": {"type": "ImageFolderDataLoader", "args": {"data_dir": "nowhere"}}}, 2),
        ({"arch.args.num_classes": 5}, 2),  # the head does not fit
        ({"arch": {"type": "networks.Failing", "args": {"how": "memory"}}}, 2),
        ({"arch": {"type": "networks.Failing", "args": {"how": "interrupt"}}}, 130),
        ({"trainer.monitor": "max val_loss", "data_loader.args.validation_split": 0}, 2),
        ({"optimizer.args.lr": -1.0, "trainer.tensorboard": True}, 2),
    ],
)
def test_run_that_fails_before_its_first_batch_leaves_no_folders(
    digits, train, own_code, tmp_path, changes, code
):
    own_code("networks", NETWORKS)
    train(digits(), "--epochs", 1)
    before, handler = folders(tmp_path), signal.getsignal(signal.SIGTERM)
    assert len(before) == 2
    assert train(digits(changes), code=code) is None
    assert folders(tmp_path) == before
    assert signal.getsignal(signal.SIGTERM) == handler


def test_unexpected_error_before_the_first_batch_leaves_no_folders(
    digits, train, own_code, tmp_path
):
    own_code("trainers", TRAINER)
    config = digits({"trainer.type": "trainers.FailingAtOnce", "trainer.tensorboard": True})
    with pytest.raises(ValueError, match="failing"):
        train(config)
    assert folders(tmp_path) == []


@pytest.mark.parametrize("how", ["head", "interrupt"])
def test_several_processes_leave_no_folders(digits, own_code, tmp_path, how):
    own_code("networks", NETWORKS)
    arch = {"type": "networks.Failing", "args": {"how": how}}
    arch = {"type": "LeNet", "args": {"num_classes": 5}} if how == "head" else arch
    (tmp_path / "config.json").write_text(json.dumps(digits({"arch": arch})))
    code = 2 if how == "head" else 130
    arguments = ["-c", str(tmp_path / "config.json")]
    assert run_processes(2, train_script.main, arguments) == [code, code]
    assert folders(tmp_path) == []


def test_sigterm_before_the_first_batch_leaves_no_folders(digits, own_code, tmp_path):
    own_code("networks", NETWORKS)
    arch = {"type": "networks.Failing", "args": {"how": "terminate"}}
    (tmp_path / "config.json").write_text(json.dumps(digits({"arch": arch})))
    context = multiprocessing.get_context("fork")
    arguments = ["-c", str(tmp_path / "config.json")]
    process = context.Process(target=train_script.main, args=(arguments,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGTERM
    assert list((tmp_path / "saved").glob("*/*")) != []
    assert folders(tmp_path) == []


def test_failure_after_an_epoch_leaves_everything(digits, train, own_code, tmp_path):
    own_code("trainers", TRAINER)
    with pytest.raises(ValueError, match="failing"):
        train(digits({"trainer.type": "trainers.Failing"}))
    [run] = runs(tmp_path)
    assert last_checkpoint(run)["epoch"] == 1
    # without a checkpoint, a row of metrics.csv is enough
    with pytest.raises(ValueError, match="failing"):
        train(digits({"trainer.type": "trainers.Failing", "trainer.save_freq": 5,
                      "trainer.monitor": "off"}))  # fmt: skip
    assert len(runs(tmp_path)) == 2
    log = run_folder.log_dir_for(runs(tmp_path)[1])
    assert len((log / "metrics.csv").read_text().splitlines()) == 2


def test_failure_within_the_first_epoch_leaves_its_curve(digits, train, tmp_path):
    config = digits(
        {"trainer.tensorboard": True, "optimizer": {"type": "SGD", "args": {"lr": 1e9}}}
    )
    train(config, code=1)
    [run] = runs(tmp_path)
    assert list(run_folder.log_dir_for(run).glob("events.*"))


def test_resumed_run_that_fails_stays(digits, train, resume, own_code, tmp_path):
    own_code("trainers", TRAINER)
    run = train(digits(), "--epochs", 1)
    resume(run, "-s", "arch.args.num_classes=5", code=2)
    for file in run.glob("*.pth"):
        file.rename(file.with_suffix(".old"))
    resume(run, code=2)
    assert runs(tmp_path) == [run]


def test_newest_run_is_one_with_a_checkpoint(digits, train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = digits({"trainer.save_dir": "saved"})
    run = train(config, "--epochs", 1)
    train(config | {"arch": {"type": "LeNet", "args": {"num_classes": 5}}}, code=2)
    run_folder.new_run_dir(tmp_path / "saved", DIGITS["name"])  # as earlier versions left it
    assert train_script.main(["-r", "--epochs", "2"]) == 0
    assert last_checkpoint(run)["epoch"] == 2


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("wrong key"), 2, "tool: wrong key"),
        (RunError("it failed"), 1, "tool: it failed"),
        (FileNotFoundError(2, "No such file", "x.png"), 2, "tool: x.png: No such file"),
        (OSError(errno.ENOSPC, "No space left", "x.pth"), 1, "tool: x.pth: No space left"),
        (MemoryError(), 1, "tool: the memory is probably full"),
        (SystemError("returned NULL"), 1, "tool: the memory is probably full: returned NULL"),
        (ImportError("No module named 'x'"), 2,
         "tool: No module named 'x'; is everything in requirements.txt installed?"),
        (RecursionError(), 2, "tool: the configuration is nested too deeply"),
        (KeyboardInterrupt(), 130, ""),
    ],
)  # fmt: skip
def test_what_ends_a_command_is_a_sentence_and_a_code(capsys, error, code, message):
    def work(arguments):
        raise error

    assert run_command(argparse.ArgumentParser(prog="tool"), [], work) == code
    assert capsys.readouterr().err == (f"{message}\n" if message else "")


def test_error_of_ours_keeps_its_traceback():
    def work(arguments):
        raise AssertionError

    with pytest.raises(AssertionError):
        run_command(argparse.ArgumentParser(prog="tool"), [], work)


def test_file_is_not_blamed_for_what_the_command_line_sets(digits, tmp_path, capsys):
    file = tmp_path / "own.json"
    file.write_text(json.dumps(digits({"trainer.epochs": "many"})), encoding="utf-8")
    assert train_script.main(["-c", str(file)]) == 2
    assert f"{file} has an error:\n  trainer.epochs: " in capsys.readouterr().err
    assert train_script.main(["-c", str(file), "-s", 'trainer.epochs="few"']) == 2
    assert f"{file} with what the command line sets has an error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but "
            "you set 'torch.use_deterministic_algorithms(True)'. You can turn off",
            "engine.deterministic: torch has no deterministic adaptive_avg_pool2d_backward_cuda",
        ),
        (
            "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously",
            "a label that the network has no output for: the same command with -d cpu says which",
        ),
    ],
)
@pytest.mark.parametrize("place", ["rehearsal", "training"])
def test_what_a_gpu_refuses_is_a_sentence(digits, train, own_code, capsys, text, message, place):
    own_code(
        "refusing",
        "import torch.nn.functional as F\n"
        "calls = []\n"
        "def loss(output, target):\n"
        "    calls.append(1)\n"
        f"    if len(calls) > {0 if place == 'rehearsal' else 12}:\n"
        f"        raise RuntimeError({text!r})\n"
        "    return F.cross_entropy(output, target)\n",
    )
    train(digits({"loss": "refusing.loss"}), code=2)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
