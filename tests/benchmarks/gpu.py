"""What only a GPU can show: networks beside a loop by hand, CIFAR-10 to 94 %, two processes."""

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from tests.benchmarks.epochs import config
from tests.benchmarks.measure import in_turn, terminal
from tests.benchmarks.steps import epoch_of
from tests.conftest import ROOT, build
from utils.config import config_file
from utils.engine.engine import Engine

FAST = {"precision": "bf16", "compile": "default", "channels_last": True}
WAYS = {  # of ResNet-18 alone, beside FAST
    "fp32": {"precision": "fp32", "channels_last": False},
    "fp16, compiled": FAST | {"precision": "fp16"},
    "bf16, CUDA graphs": FAST | {"compile": "reduce-overhead"},
}
WARM_UP = 2  # rounds: compiling, choosing kernels, forward and backward

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


def networks(
    data_dir: Path,
    save_dir: Path,
    rounds: int,
    names: tuple[str, ...] = ("resnet18", "resnet50"),
    batch: int = 256,
    side: int = 224,
    steps: int = 20,
) -> dict[str, float]:
    """Training images a second, of random ones that are on the device already: by a loop of plain
    torch, by the engine, by the Trainer with metrics and bar.
    """
    figures = {}
    for name in names:
        engine = Engine(settings=FAST)
        ready = batches_of(batch, side, engine)
        trainer = trainer_of(name, data_dir, save_dir, steps, ready)
        ways = {
            "plain": plain_steps(network_of(name, engine), ready, steps),
            "engine": engine_steps(network_of(name, engine), engine, ready, steps),
            "trainer": waiting(epoch_of(trainer), engine),
        }
        with terminal():
            timings = in_turn(rounds, ways, warm_up=WARM_UP)
        figures[f"{name}, bf16, compiled, images/s"] = batch * steps / timings.median("engine")
        figures["  plain torch / the engine"] = timings.ratio("plain", "engine")
        figures["  Trainer / plain torch"] = timings.ratio("trainer", "plain")
    for way, settings in WAYS.items():
        engine, name = Engine(settings=settings), names[0]
        ready = batches_of(batch, side, engine)
        run = engine_steps(network_of(name, engine), engine, ready, steps)
        timings = in_turn(rounds, {"engine": run}, warm_up=WARM_UP)
        figures[f"{name}, {way}, images/s"] = batch * steps / timings.median("engine")
    return figures


def batches_of(batch: int, side: int, engine: Engine) -> Batches:
    data = [engine.to_device(torch.randn(batch, 3, side, side)) for _ in range(2)]
    target = engine.to_device(torch.randint(10, (batch,)))
    return itertools.cycle([(each, target) for each in data])


def network_of(name: str, engine: Engine) -> torch.nn.Module:
    from torchvision import models

    return getattr(models, name)(num_classes=10).to(engine.device).train()


def plain_steps(
    network: torch.nn.Module, batches: Batches, steps: int, mode: str | None = "default"
) -> Callable[[], None]:
    """As in torch's documentation."""
    device = next(network.parameters()).device
    network = network.to(memory_format=torch.channels_last)
    model = torch.compile(network, mode=mode) if mode else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)

    def run() -> None:
        for data, target in itertools.islice(batches, steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16):
                loss = F.cross_entropy(model(data), target)
            loss.backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def engine_steps(
    network: torch.nn.Module, engine: Engine, batches: Batches, steps: int
) -> Callable[[], None]:
    model = engine.prepare(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)

    def run() -> None:
        for data, target in itertools.islice(batches, steps):
            engine.backward(F.cross_entropy(engine.forward(model, data), target))
            engine.optimizer_step(optimizer)

    return waiting(run, engine)


def waiting(action: Callable[[], object], engine: Engine) -> Callable[[], None]:
    """The action, and what the device still has to do afterwards."""

    def run() -> None:
        action()
        engine.synchronize()

    return run


def trainer_of(name: str, data_dir: Path, save_dir: Path, steps: int, batches: Batches) -> object:
    settings = config(data_dir, save_dir) | {"n_gpu": 1, "engine": FAST}
    trainer = build(settings)
    network = network_of(name, trainer.engine)  # of three channels
    trainer.set_model(network, torch.optim.SGD(network.parameters(), 0.01, 0.9, fused=True))
    trainer.len_epoch, trainer.log_interval = steps, max(1, steps // 10)
    trainer._stream = batches
    trainer._settle_statistics = lambda epoch: None  # belongs to an epoch's end, not to its steps
    return trainer


def cifar(
    data_dir: Path, save_dir: Path, goal: float = 0.94, changes: dict | None = None
) -> dict[str, float]:
    """Seconds of training, without compiling, until the test accuracy of configs/cifar10_fast.json
    reaches `goal`.
    """
    config = config_file.read_layers(ROOT / "configs" / "cifar10_fast.json")[0] | (changes or {})
    config["data_loader"]["args"]["data_dir"] = str(data_dir)
    config["trainer"]["save_dir"] = str(save_dir)
    trainer = build(config)
    engine = trainer.engine
    trainer.valid_data_loader = trainer.data_loader.for_subset("test")
    trainer.valid_data_loader.to(engine.device)
    data, target = map(engine.to_device, next(iter(trainer.data_loader)))
    engine.backward(F.cross_entropy(engine.forward(trainer.model, data), target))  # compiles
    trainer.optimizer.zero_grad(set_to_none=True)
    spent, accuracy = 0.0, 0.0
    while trainer.epoch <= trainer.epochs and accuracy < goal:
        engine.synchronize()
        begun = time.perf_counter()
        trainer.freeze(trainer.model, trainer.epoch)
        engine.seed_epoch(trainer.epoch)
        trainer._train_epoch(trainer.epoch)
        engine.synchronize()
        spent += time.perf_counter() - begun
        accuracy = trainer._valid_epoch(trainer.epoch)["accuracy"]
        trainer.step, trainer.epoch = 0, trainer.epoch + 1
    return {
        "CIFAR-10, test accuracy": accuracy,
        "  seconds of training": spent,
        "  epochs": trainer.epoch - 1,
    }


def two_processes(data_dir: Path, save_dir: Path, rounds: int) -> dict[str, float]:
    """Time of three epochs of CIFAR-10 on one GPU over that on two, start included; nothing where
    there are no two.
    """
    if torch.cuda.device_count() < 2:
        return {}
    settings = config_file.read_layers(ROOT / "configs" / "cifar10_fast.json")[0]
    settings["data_loader"]["args"]["data_dir"] = str(data_dir)
    settings["trainer"] |= {"save_dir": str(save_dir), "epochs": 3}
    file = save_dir / "two.json"
    file.write_text(json.dumps(settings), encoding="utf-8")

    def train(devices: str) -> None:
        command = [sys.executable, "train.py", "-c", str(file), "-d", devices]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    timings = in_turn(rounds, {"one": lambda: train("0"), "two": lambda: train("0,1")})
    return {"CIFAR-10, one GPU / two": timings.ratio("one", "two")}
