"""What the trials share: small tasks, their unbroken runs, observers, comparisons."""

import copy
import csv
import inspect
import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from tests.faults.server import Ended, isolated, run

T = TypeVar("T")
LEN_EPOCH, EPOCHS, SAVE_EVERY = 8, 3, 3  # batches, epochs, steps
DIGITS = {
    "name": "Digits",
    "seed": 5,
    "n_gpu": 0,
    "arch": {"type": "LeNet", "args": {"num_classes": 10}},
    "data_loader": {
        "type": "DigitsDataLoader",
        "args": {"data_dir": "../../data", "batch_size": 50, "validation_split": 0.1},
    },
    "optimizer": {"type": "Adam", "args": {"lr": 0.002}},
    "loss": "cross_entropy",
    "metrics": ["accuracy", "top_k_acc"],
    "lr_scheduler": {"type": "StepLR", "args": {"step_size": 2, "gamma": 0.5}},
    "trainer": {
        "epochs": EPOCHS, "len_epoch": LEN_EPOCH, "verbosity": 1, "monitor": "min val_loss",
        "tensorboard": False,
    },
}  # fmt: skip
PRUNING = {
    "name": "Pruned",
    "metrics": ["accuracy"],
    "lr_scheduler": {"type": "OneCycleLR", "args": {"max_lr": 0.006}},
    "pruner": {
        "type": "MagnitudePruner",
        "args": {"iterative_steps": 2, "channel_sparsity": 0.5, "round_to": 2},
    },
    "trainer": {
        "type": "PruneTrainer", "epochs": 1, "last_epochs": 2, "len_epoch": 6, "verbosity": 1,
        "monitor": "max val_accuracy", "tensorboard": False,
    },
}  # fmt: skip
TIMES = ("seconds", "samples_per_second", "latency_ms", "torch_ms", "latency")  # as measured
WRITING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.utime")


class Fault(AssertionError):  # noqa: N818 (of the product, not of this program)
    """What is wrong with the product: a sentence."""


@dataclass
class Reference:
    """An unbroken run.

    Attributes:
        folder: in which it ran
        path: the run's folder
        seconds: how long it took
        events: how many times it opened, renamed or removed a file to change it
    """

    folder: Path
    path: Path
    seconds: float
    events: int


def merged(config: dict, changes: dict) -> dict:
    """`config` with values replaced, deeply but for sections of another type."""
    config = copy.deepcopy(config)
    for key, value in changes.items():
        old = config.get(key)
        deep = isinstance(value, dict) and isinstance(old, dict)
        if deep and value.get("type", old.get("type")) == old.get("type"):
            config[key] = merged(old, value)
        else:
            config[key] = copy.deepcopy(value)
    return config


def saves_within_epochs() -> bool:
    """Whether the trainer has the key save_every."""
    from base import BaseTrainer

    return "save_every" in inspect.signature(BaseTrainer.__init__).parameters


class Lab:
    """A folder for the trials of one process, and what is made there once.

    Args:
        folder: an empty folder
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._made: dict[str, Any] = {}
        (folder / "data").mkdir(parents=True)
        isolated(_save_digits, folder / "data" / "digits.npz")

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` returned when this name was first asked for."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def fresh(self, name: str = "trial") -> Path:
        """An empty working folder, ../../data from the digits."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        work = self.folder / name / "work"
        work.mkdir(parents=True)
        return work

    def copy(self, source: Path, name: str = "trial") -> Path:
        """A working folder with what is in `source`; the times of the files are kept, too."""
        work = self.fresh(name)
        shutil.copytree(source, work, dirs_exist_ok=True)
        return work

    def trained(self) -> Reference:
        """A finished training on the digits."""
        return self.reference("trained", DIGITS, ["train.py", "-c", "config.json"])

    def reference(self, name: str, config: dict, command: list[str]) -> Reference:
        """The unbroken run of a configuration, made once."""

        def make() -> Reference:
            folder = self.fresh(f"reference-{name}")
            write_config(folder, config)
            events = folder.with_name("events")
            first = run(folder, command, [lambda: watch_files(events)])
            if first.code:
                raise AssertionError(f"the unbroken run of {name} failed: {first.output}")
            path = find_run(folder, config["name"])
            return Reference(folder, path, first.seconds, events.stat().st_size)

        return self.once(name, make)


def _save_digits(path: Path) -> None:
    from data_loader.data_loaders import read_digits

    read_digits(path)


def write_config(folder: Path, config: dict, name: str = "config.json") -> None:
    (folder / name).write_text(json.dumps(config), encoding="utf-8")


def find_run(folder: Path, name: str) -> Path | None:
    """The newest run of this name that has a checkpoint, relative to the folder; or None."""
    runs = [path.parent for path in (folder / "saved" / "models" / name).glob("*/*.pth")]
    return max(runs, key=lambda path: path.name).relative_to(folder) if runs else None


def watch_files(file: Path, kill_at: int = 0) -> None:
    """In a fork: note each change of a file in `file`, a byte each; kill -9 before one of them."""
    process, descriptor, seen = os.getpid(), os.open(file, os.O_WRONLY | os.O_CREAT), 0

    def observe(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event == "open":
            is_change = isinstance(arguments[0], str | os.PathLike) and arguments[2] & os.O_ACCMODE
        else:
            is_change = event in WRITING
        if is_change and os.getpid() == process:
            seen += 1
            os.write(descriptor, b".")
            if seen == kill_at:
                os.kill(process, signal.SIGKILL)

    sys.addaudithook(observe)


def watch_steps(file: Path) -> None:
    """In a fork: note each optimizer step, by (process, batches of the run before it)."""
    from trainer.trainer import Trainer

    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    original = Trainer.after_backward

    def after_backward(self: Trainer) -> None:
        done = (self.epoch - 1) * self.len_epoch + self.step
        os.write(descriptor, f"{os.getpid()} {done}\n".encode())
        original(self)

    Trainer.after_backward = after_backward


def work_lost(file: Path, batches_per_step: int = 1) -> int:
    """How many batches were trained twice at most, from one process to the next."""
    lost, last = 0, None
    for line in file.read_text().splitlines() if file.exists() else []:
        process, done = map(int, line.split())
        if last is not None and last[0] != process:
            lost = max(lost, last[1] - done + batches_per_step)
        last = process, done
    return lost


def assert_equal_runs(reference: Reference, folder: Path, path: Path) -> None:
    """Raises Fault unless a run has all that the unbroken one has, to the last bit."""
    if differences := isolated(_differences, reference.folder / reference.path, folder / path):
        raise Fault(f"not what the unbroken run gives: {'; '.join(differences[:3])}")


def assert_no_leftovers(*folders: Path) -> None:
    """Raises Fault if unfinished files are left."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.name.endswith(".tmp") or path.name.startswith(".export-"):
                raise Fault(f"left over: {path.name}")


def check(ended: Ended, allowed: tuple[int, ...] = (0, 1, 2)) -> None:
    """Raises Fault if a command ended in a way that none may."""
    if complaint := ended.complaint(allowed):
        raise Fault(complaint)


def _differences(reference: Path, path: Path) -> list[str]:
    from tests.conftest import assert_same
    from utils import checkpoint

    found, last = [], next(checkpoint.numbered_checkpoints(reference))
    for file in sorted(reference.rglob("*.pth")):
        name = file.relative_to(reference)
        if not (path / name).exists():
            if file == last or not file.name.startswith("checkpoint"):
                found.append(f"{name} is missing")
            continue
        try:
            one, other = (_comparable(checkpoint.load_file(f)) for f in (file, path / name))
            assert_same(one, other)
        except AssertionError as error:
            found.append(f"{name} differs in {str(error).splitlines()[0]}")
    if (rows := table(reference)) != (others := table(path)):
        epochs = [[row.get("epoch") for row in part] for part in (others, rows)]
        same = "with other numbers" if epochs[0] == epochs[1] else f"not {epochs[1]}"
        found.append(f"metrics.csv has the epochs {epochs[0]}, {same}")
    return found


def _comparable(state: Any) -> Any:
    """A checkpoint without times, and without the configuration, which names folders."""
    if isinstance(state, dict):
        left_out = ("config", "versions", "sessions", *TIMES)
        return {k: _comparable(v) for k, v in state.items() if k not in left_out}
    return [_comparable(value) for value in state] if isinstance(state, list) else state


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv, without times."""
    from utils import run_folder

    file = run_folder.log_dir_for(path) / "metrics.csv"
    if not file.exists():
        return []
    with open(file, newline="", encoding="utf-8") as opened:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(opened)]


Trial = Callable[[Lab, Random], Counter]
