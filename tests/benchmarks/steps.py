"""What the Trainer adds to a training step, and what a checkpoint costs."""

import itertools
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from tests.benchmarks.epochs import config
from tests.benchmarks.measure import in_turn, terminal
from tests.conftest import ROOT, build

STEPS = {"LeNet": 422, "resnet18": 12}  # LeNet's as many as an epoch of MNIST has
# A network's median step, in a process of its own: what is set holds for all of a process.
STEP = """
import sys, time
import torch, torchvision
from utils.engine.engine import keep_freed_memory
name, side, batch, kept = sys.argv[1], *map(int, sys.argv[2:])
if kept:
    keep_freed_memory()
model = getattr(torchvision.models, name)().to(memory_format=torch.channels_last)
optimizer = torch.optim.Adam(model.parameters(), fused=True)
data = torch.randn(batch, 3, side, side).to(memory_format=torch.channels_last)
target = torch.randint(1000, (batch,))
seconds = []
for _ in range(10):
    begun = time.perf_counter()
    torch.nn.functional.cross_entropy(model(data), target).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds.append(time.perf_counter() - begun)
print(sorted(seconds[2:])[4])
"""
NETWORKS = {"resnet18": (64, 32), "mobilenet_v2": (192, 16)}  # sides and batches
SHAPES = {"LeNet": (128, 1, 28, 28), "resnet18": (32, 1, 64, 64)}


def overhead(data_dir: Path, save_dir: Path, rounds: int) -> dict[str, float]:
    """Time of Trainer's steps, metrics and bar included, over that of forward, backward and step
    alone.
    """
    figures = {}
    for name, steps in STEPS.items():
        trainer = trainer_of(name, data_dir, save_dir, steps)
        ways = {"trainer": epoch_of(trainer), "bare": bare_steps(trainer, steps)}
        with terminal():
            timings = in_turn(rounds, ways)
        figures[f"Trainer / bare step, {name}"] = timings.ratio("trainer", "bare")
        figures[f"  a step of {name}, ms"] = timings.median("bare") / steps * 1000
    return figures


def checkpoint_stall(data_dir: Path, save_dir: Path, rounds: int) -> dict[str, float]:
    """Seconds that training waits while a checkpoint is written, fsync included."""
    figures = {}
    for name in STEPS:
        trainer = trainer_of(name, data_dir, save_dir, 1)
        epoch_of(trainer)()  # the optimizer has a state from now on
        figures[f"checkpoint of {name}, s"] = in_turn(
            rounds, {"save": trainer._save_numbered}
        ).median("save")
    return figures


def kept_memory(rounds: int) -> dict[str, float]:
    """Time of a step on the CPU while the C library gives freed memory back, over that where it is
    kept.
    """
    figures = {}
    for name, sizes in NETWORKS.items():
        ratios = []
        for _ in range(rounds):
            given_back, kept = (step_seconds(name, *sizes, kept) for kept in (0, 1))
            ratios.append(given_back / kept)
        figures[f"memory given back / kept, {name}"] = statistics.median(ratios)
    return figures


def step_seconds(*arguments: object) -> float:
    command = [sys.executable, "-c", STEP, *map(str, arguments)]
    return float(
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    )


def trainer_of(name: str, data_dir: Path, save_dir: Path, steps: int) -> Any:
    """A trainer of `name` that is served batches made beforehand."""
    settings = config(data_dir, save_dir)
    if name == "resnet18":
        settings |= {"arch": {"type": "resnet18", "args": {"num_classes": 10}}}
    trainer = build(settings)
    trainer.len_epoch, trainer.log_interval = steps, max(1, steps // 10)
    trainer._stream = batches_of(name)
    trainer._settle_statistics = lambda epoch: None  # belongs to an epoch's end, not to its steps
    return trainer


def batches_of(name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    shape = SHAPES[name]
    ready = [(torch.randn(shape), torch.randint(10, shape[:1])) for _ in range(4)]
    return itertools.cycle(ready)


def epoch_of(trainer: Any) -> Callable[[], None]:
    def epoch() -> None:
        trainer.step = 0
        trainer._train_epoch(2)

    return epoch


def bare_steps(trainer: Any, steps: int) -> Callable[[], None]:
    """The same network, optimizer, batches; nothing else."""
    model, optimizer, engine = trainer.model, trainer.optimizer, trainer.engine
    stream = batches_of(trainer.config["arch"]["type"])

    def run() -> None:
        model.train()
        for data, target in itertools.islice(stream, steps):
            loss = F.cross_entropy(model(engine.to_device(data)), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run
