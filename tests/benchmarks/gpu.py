"""What only a GPU can show: networks in bf16, compiled, channels last, and CIFAR-10 to 94 %."""

import itertools
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from tests.conftest import ROOT, build
from utils.config import config_file
from utils.engine.engine import Engine

WAYS = {
    "fp32": {"precision": "fp32", "channels_last": False},
    "bf16, compiled, channels last": {
        "precision": "bf16",
        "compile": "default",
        "channels_last": True,
    },
}
WARM_UP = 5


def networks(
    batch: int = 256,
    side: int = 224,
    steps: int = 50,
    names: tuple[str, ...] = ("resnet18", "resnet50"),
) -> dict:
    """Training images a second, random ones that are on the device already."""
    from torchvision import models

    figures = {}
    for name in names:
        for way, settings in WAYS.items():
            engine = Engine(settings=settings)
            model = engine.prepare(getattr(models, name)(num_classes=1000)).train()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
            data = engine.to_device(torch.randn(batch, 3, side, side))
            target = engine.to_device(torch.randint(1000, (batch,)))
            for step in itertools.count():
                if step == WARM_UP:
                    wait(engine)
                    begun = time.perf_counter()
                engine.backward(F.cross_entropy(engine.forward(model, data), target))
                engine.optimizer_step(optimizer)
                if step == WARM_UP + steps - 1:
                    break
            wait(engine)
            figures[f"{name}, {way}, images/s"] = batch * steps / (time.perf_counter() - begun)
    return figures


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
    trainer.valid_data_loader = trainer.data_loader.for_subset("test")
    trainer.valid_data_loader.to(trainer.engine.device)
    trainer.engine.forward(
        trainer.model, trainer.engine.to_device(next(iter(trainer.data_loader))[0])
    )  # compiles
    spent, accuracy = 0.0, 0.0
    while trainer.epoch <= trainer.epochs and accuracy < goal:
        wait(trainer.engine)
        begun = time.perf_counter()
        trainer.freeze(trainer.model, trainer.epoch)
        trainer.engine.seed_epoch(trainer.epoch)
        trainer._train_epoch(trainer.epoch)
        wait(trainer.engine)
        spent += time.perf_counter() - begun
        accuracy = trainer._valid_epoch(trainer.epoch)["accuracy"]
        trainer.step, trainer.epoch = 0, trainer.epoch + 1
    return {
        "CIFAR-10, test accuracy": accuracy,
        "  seconds of training": spent,
        "  epochs": trainer.epoch - 1,
    }


def wait(engine: Engine) -> None:
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
