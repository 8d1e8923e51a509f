"""What goes wrong in the middle of a run is a sentence that names what is to blame."""

import errno
import json
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT, runs
from utils.errors import UserError, explained

OWN = """
import os
import torch
from multiprocessing.reduction import ForkingPickler
from torch import nn
from base import BaseDataLoader


class Rows(torch.utils.data.Dataset):
    def __init__(self, kind):
        self.kind, self.paths = kind, [f"rows/{number}.csv" for number in range(64)]

    def __len__(self):
        return 64

    def __getitem__(self, index):
        row = torch.randn(4, generator=torch.Generator().manual_seed(index))
        if index == 40:
            if self.kind == "error":
                return {}["price"]
            if self.kind == "gone":
                open(self.paths[index])
            if self.kind == "memory":
                torch.empty(10**15)
            if self.kind == "size":
                row = row[:3]
            if self.kind == "nan":
                row[1] = float("nan")
            if self.kind == "unsent":
                ForkingPickler.register(torch.Tensor, lambda tensor: open("gone"))
            if self.kind.isdecimal():
                os.kill(os.getpid(), int(self.kind))
        return row, index % 2


class RowsDataLoader(BaseDataLoader):
    def __init__(self, kind: str = "", **kwargs):
        self.kind = kind
        super().__init__(**kwargs)

    def build_dataset(self, subset, augment):
        return Rows(self.kind)


class Network(nn.Module):
    def __init__(self, fails_at: int = -1, grows_to: float = 1.0):
        super().__init__()
        self.linear, self.fails_at, self.factor, self.calls = nn.Linear(4, 2), fails_at, grows_to, 0

    def forward(self, data):
        self.calls += 1
        if self.calls > self.fails_at >= 0:
            torch.empty(10**15)
        return self.linear(data) * self.factor
"""


@pytest.fixture
def config(own_code, digits):
    own_code("rows", OWN)

    def make(kind="", workers=0, **arguments):
        config = digits({"lr_scheduler": None, "trainer.monitor": "off"}, metrics=["accuracy"])
        config["arch"] = {"type": "rows.Network", "args": arguments}
        own = {"kind": kind, "batch_size": 8, "num_workers": workers}
        return config | {"data_loader": {"type": "rows.RowsDataLoader", "args": own}}

    return make


def message(capsys):
    """The error, which is one sentence in one line."""
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    return error


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("error", "rows/40.csv cannot be loaded: KeyError: 'price'"),
        ("gone", "rows/40.csv cannot be loaded: [Errno 2] No such file or directory"),
        ("size", " cannot be loaded: "),
        ("nan", "as there is NaN or infinity in the data: rows/40.csv (last good state: none)"),
    ],
)
def test_sample_that_cannot_be_used_is_named(config, train, capsys, kind, words, workers):
    train(config(kind, workers), code=2)
    assert words in message(capsys)


def test_nan_in_validation_data_is_named(config, train, capsys):
    own = config("nan")
    own["valid_data_loader"], own["data_loader"] = own["data_loader"], config()["data_loader"]
    train(own, code=2)
    assert "val_loss became nan in epoch 1" in (error := message(capsys))
    assert "rows/40.csv" in error


def test_diverging_loss_does_not_blame_the_data(config, train, capsys):
    train(config(grows_to=1e300), code=1)
    assert "A lower learning rate" in message(capsys)


@pytest.mark.parametrize("arguments", [[], ["--check"]])
@pytest.mark.parametrize("fails_at", [0, 2])
def test_full_memory_says_what_to_set(config, train, capsys, arguments, fails_at):
    train(config(fails_at=fails_at), *arguments, code=1)
    error = message(capsys)
    assert "batches of 8 are too large" in error
    assert "-s data_loader.args.batch_size=4 trainer.grad_accum_steps=2" in error
    assert "arch" not in error


def test_memory_of_a_worker_and_of_a_test(config, train, capsys):
    import test

    train(config("memory", 2), "-s", "data_loader.args.batch_size=1", code=1)
    assert "num_workers=0" in message(capsys)
    run = train(config(), "--epochs", 1)
    capsys.readouterr()
    assert test.main(["-r", str(run), "-s", "arch.args.fails_at=2"]) == 1
    assert "-s data_loader.args.batch_size=4" in message(capsys)


@pytest.mark.parametrize(
    ("kind", "cause"), [("9", "SIGKILL: the system ends processes when the memory is full"),
                        ("11", "SIGSEGV: a library crashed")],
)  # fmt: skip
def test_dead_worker_says_which_sample_it_loaded(config, train, capfd, kind, cause):
    train(config(kind, 2), code=1)
    error = capfd.readouterr().err.splitlines()[-1]
    assert f"of 2 died while it loaded rows/40.csv (signal {cause}" in error


def test_batch_that_a_worker_cannot_send_is_not_waited_for(config, train, capfd):
    train(config("unsent", 1), code=1)
    error = capfd.readouterr().err
    assert "a worker could not send its batch: [Errno 2] No such file" in error
    assert "worker 1 of 1 died" in error.splitlines()[-1]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_full_memory_is_nobodys_fault(error):
    with pytest.raises(type(error)), explained("arch: the network cannot take a batch"):
        raise error
    with pytest.raises(UserError, match="arch: size"), explained("arch"):
        raise RuntimeError("size mismatch")


def test_too_few_open_files_for_the_workers(config, train, capsys, monkeypatch):
    def fail(path):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("base.worker_loader.open", fail, raising=False)
    train(config(workers=2), code=1)
    assert "too many open files for 2 workers; raise the limit (ulimit -n)" in message(capsys)


def test_too_many_workers_are_refused(config, train, capsys):
    train(config(workers=10_000), code=2)
    assert "num_workers: 10000 should be at most" in message(capsys)


def test_folder_that_cannot_be_written_is_named(config, train, tmp_path, capsys):
    (tmp_path / "saved" / "log").mkdir(parents=True)
    (tmp_path / "saved" / "log" / "Digits").write_text("a file in its place")
    train(config(), code=2)
    assert str(tmp_path / "saved" / "log" / "Digits") in message(capsys)


def test_run_goes_on_without_a_screen_and_on_one_without_unicode(config, tmp_path):
    own = config() | {"name": "検査"}
    own["data_loader"] = {"type": "DigitsDataLoader", "args": own["data_loader"]["args"]}
    own["data_loader"]["args"].pop("kind")
    own |= {"arch": "LeNet"}
    own["data_loader"]["args"]["batch_size"] = 500
    (tmp_path / "config.json").write_text(json.dumps(own), encoding="utf-8")
    command = [sys.executable, "train.py", "-c", str(tmp_path / "config.json"), "-d", "cpu"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline()
    process.stdout.close()  # as `| head -1` does
    assert process.stderr.read() == b""
    assert process.wait() == 0
    assert (runs(tmp_path)[0] / "checkpoint-epoch2.pth").exists()
