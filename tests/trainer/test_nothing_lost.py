"""However a run ends, what it had trained is kept, and the resumed run equals the unbroken one."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, SMALL_NETWORK, assert_same, last_checkpoint, runs
from utils import checkpoint, lock, run_folder
from utils.errors import UserError

BREAKER = """
import os, signal
from data_loader.data_loaders import DigitsDataLoader
from trainer import Trainer

class Breaker(Trainer):
    "Sends signals, or raises an error, in the middle of a run."
    not_kept = (*Trainer.not_kept, "signals_at", "error_at", "seen")
    def __init__(self, *args, signals_at: dict[str, list[int]] | None = None,
                 error_at: str | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.signals_at, self.error_at, self.seen = signals_at or {}, error_at, 0
    def after_backward(self):
        self.seen += 1
        for signum in self.signals_at.get(str(self.seen), []):
            signal.raise_signal(signum)  # to this thread: os.kill may go to another one first
        if self.error_at == f"step {self.seen}":
            raise ValueError("broken")
    def _valid_epoch(self, epoch):
        if self.error_at == f"validation {epoch}":
            raise ValueError("broken")
        return super()._valid_epoch(epoch)

class BreakingLoader(DigitsDataLoader):
    "Breaks in the second epoch."
    def __init__(self, data_dir, broken: int = -1, **kwargs):
        self.broken = broken
        super().__init__(data_dir, **kwargs)
    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if self.sampler.epoch == 1 and number == self.broken:
                raise ValueError("broken")
            yield batch
"""
DROPPING = {  # what a state has to hold: generators, an average, statistics of batch norms
    "arch": "net.dropping", "trainer.ema_decay": 0.9, "trainer.epochs": 3,
    "trainer.type": "breaker.Breaker", "data_loader.type": "breaker.BreakingLoader",
}  # fmt: skip
BATCHES = 13  # of an epoch
IGNORED = "config", "versions", "sessions"


@pytest.fixture
def dropping(digits, own_code):
    own_code("breaker", BREAKER)
    own_code("net", SMALL_NETWORK)
    return lambda changes: digits({**DROPPING, **changes})


def rows(run):
    with open(run_folder.log_dir_for(run) / "metrics.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.startswith(("sec", "samp"))} for row in table]


def assert_like(run, other):
    states = [last_checkpoint(folder) for folder in (run, other)]
    assert_same(*({k: v for k, v in s.items() if k not in IGNORED} for s in states))
    assert rows(run) == rows(other)
    assert not [path for path in run.rglob("*") if path.name.endswith((".tmp", lock.NAME))]


def trained(run):
    """Batches trained at the newest state."""
    state = checkpoint.find(run)[1]
    return (state["epoch"] - 1) * BATCHES + (state["trainer"]["step"] or BATCHES)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"data_loader.args.broken": 5}, BATCHES + 5),
        ({"data_loader.args.broken": 0}, BATCHES),  # nothing of the epoch is trained
        ({"trainer.error_at": "validation 2"}, 2 * BATCHES),
        ({"trainer.error_at": "step 20"}, BATCHES),  # in a step: nothing can be saved
        ({"trainer.error_at": "step 20", "trainer.save_every": 4}, 17),
        ({"data_loader.args.broken": 5, "trainer.grad_accum_steps": 2}, BATCHES),  # half a step
        ({"data_loader.args.broken": 4, "trainer.grad_accum_steps": 2}, BATCHES + 4),
    ],
)
def test_unforeseen_error_keeps_what_was_trained(dropping, train, resume, tmp_path, changes, kept):
    accumulation = {k: v for k, v in changes.items() if k == "trainer.grad_accum_steps"}
    whole = train(dropping(accumulation))
    with pytest.raises(ValueError, match="broken"):
        train(dropping(changes))
    [run] = set(runs(tmp_path)) - {whole}
    assert trained(run) == kept
    resume(run, "-s", "trainer.error_at=null", "data_loader.args.broken=-1")
    assert_like(run, whole)


def test_saving_within_epochs_changes_nothing_and_keeps_one_such_file(dropping, train):
    whole = train(dropping({}))
    run = train(dropping({"trainer.save_every": 4, "trainer.save_freq": 3}))
    assert_like(run, whole)
    assert [path.name for path in checkpoint.numbered_checkpoints(run)] == ["checkpoint-epoch3.pth"]


def test_nothing_is_saved_while_the_validation_has_its_own_random_numbers(
    dropping, train, monkeypatch
):
    saved, save = [], checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda state, path: (saved.append(state), save(state, path))
    )
    train(dropping({"trainer.save_every": 1, "trainer.epochs": 1}))
    steps = [state["trainer"]["step"] for state in saved]
    assert steps == [*range(1, BATCHES + 1), 0, 0]  # and the best and the last of the epoch


@pytest.mark.parametrize("value", ["15", "1.5h", 2.5, -1, "0min"])
def test_save_every_is_a_duration_or_a_number_of_batches(digits, train, capsys, value):
    train(digits({"trainer.save_every": value}), code=2)
    wanted = 'a whole number of at least 0 or a text like "15min" or "30s" or "2h"'
    assert f"trainer.save_every: {json.dumps(value)} should be {wanted}" in capsys.readouterr().err


def test_time_decides_when_to_save(dropping, train, monkeypatch, tmp_path):
    """With a clock that goes a second further with each question."""
    from base import base_trainer

    saved, clock = [], iter(range(10**6))
    monkeypatch.setattr(base_trainer.time, "monotonic", lambda: next(clock))
    save = checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda state, path: (saved.append(state), save(state, path))
    )
    train(dropping({"trainer.save_every": "5s", "trainer.epochs": 1}))
    assert [state["trainer"]["step"] for state in saved if state["trainer"]["step"]]


SIGNALS = ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGXCPU"]


@pytest.mark.skipif(os.name != "posix", reason="the signals")
@pytest.mark.parametrize("name", SIGNALS)
def test_signal_ends_the_run_with_its_code_and_a_second_one_is_ignored(
    dropping, train, resume, name
):
    signum = getattr(signal, name)
    whole = train(dropping({}))
    run = train(
        dropping({"trainer.signals_at": {"17": [signum, signal.SIGTERM]}}), code=128 + signum
    )
    assert trained(run) == 17
    os.kill(os.getpid(), signum)  # while the process ends
    resume(run, "-s", "trainer.signals_at={}")
    assert_like(run, whole)


@pytest.mark.skipif(os.name != "posix", reason="the signals")
def test_sigusr1_saves_and_goes_on(dropping, train, monkeypatch):
    whole, states, save = train(dropping({})), [], checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda state, path: (states.append(state), save(state, path))
    )
    run = train(dropping({"trainer.signals_at": {"17": [signal.SIGUSR1]}}))
    assert [s["trainer"]["step"] for s in states if s["trainer"]["step"]] == [17 - BATCHES]
    assert_like(run, whole)


def test_signal_again_after_two_seconds_ends_at_once_and_says_that_nothing_was_saved(monkeypatch):
    from utils.engine import signals

    ended, now = [], [0.0]
    monkeypatch.setattr(signals.os, "_exit", ended.append)
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    with signals.StopSignals():
        for now[0] in (0.0, 0.1, 1.9):
            os.kill(os.getpid(), signal.SIGINT)
            assert not ended
        now[0] = 2.1
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended == [1]


@pytest.mark.skipif(os.name != "posix", reason="nohup")
def test_signal_that_was_ignored_stays_ignored():
    from utils.engine.signals import StopSignals

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stopping:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stopping.arrived()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_record_lost_between_row_and_checkpoint_is_made_anew(dropping, train, resume, monkeypatch):
    """Killed right before a checkpoint, or with the last rows of metrics.csv not on the disk."""
    whole = train(dropping({}))
    run = train(dropping({}))
    table = run_folder.log_dir_for(run) / "metrics.csv"
    lines = table.read_text("utf-8").splitlines(keepends=True)
    table.write_text("".join(lines[:2]), "utf-8", newline="")
    (run / "checkpoint-epoch3.pth").unlink()
    (run / checkpoint.BEST).unlink()
    resume(run)
    assert_like(run, whole)


def test_newest_state_may_be_the_best(dropping, train, resume):
    whole = train(dropping({"trainer.epochs": 3}))
    run = train(dropping({"trainer.save_freq": 5}))
    (run / "checkpoint-epoch3.pth").unlink()  # killed before it
    assert trained(run) == 3 * BATCHES
    assert checkpoint.load(run / checkpoint.BEST)["epoch"] == 3
    resume(run)
    assert_like(run, whole)


HOLDER = """
import sys, time
from pathlib import Path
from utils import lock
lock.acquire(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_run_has_one_owner_until_that_dies(digits, train, resume, capsys, tmp_path, monkeypatch):
    run = train(digits())
    command = [sys.executable, "-c", HOLDER, str(run)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        logs = (run_folder.log_dir_for(run) / "info.log").read_bytes()
        resume(run, code=2)
        message = capsys.readouterr().err
        assert f"{run} is being trained by process {holder.pid} on " in message
        assert (run_folder.log_dir_for(run) / "info.log").read_bytes() == logs
        other = train(digits())
        newest = run / "checkpoint-epoch2.pth"
        os.utime(newest, (time.time() + 60, time.time() + 60))
        assert checkpoint.newest_run(tmp_path / "saved") == run
        with pytest.raises(UserError, match=f"is being trained; for {other} pass -r {other}"):
            checkpoint.newest_run(tmp_path / "saved", to_train=True)
        holder.kill()
    resume(run, "--epochs", 3)
    assert not (run / lock.NAME).exists()


def test_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    import errno

    def unsupported(file):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(lock, "_lock", unsupported)
    lock.acquire(tmp_path)
    lock.release()
    assert "has no locks" in caplog.text


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="the system has no SIGUSR1")
def test_request_to_save_that_comes_late_does_not_kill(digits, train):
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    try:
        train(digits({"trainer.len_epoch": 1}))
        os.kill(os.getpid(), signal.SIGUSR1)  # as batch systems do while a process ends
    finally:
        signal.signal(signal.SIGUSR1, before)
