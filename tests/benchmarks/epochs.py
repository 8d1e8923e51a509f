"""An epoch of MNIST with LeNet: ours with all its features on, the loop that people write, and the
bare computation.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, random_split

from tests.benchmarks.measure import OwnProcess, ending, in_turn
from tests.conftest import build

BATCH, RATE = 128, 0.001


def mnist_epoch(data_dir: Path, save_dir: Path, rounds: int) -> dict[str, float]:
    """Seconds for 54,000 samples of training and 6,000 of validation, each in its own process."""
    here, folders = __name__, (data_dir, save_dir)
    ways = {
        "ours": OwnProcess(f"{here}:ours", *folders, "tf32", is_ours=True),
        "bf16": OwnProcess(f"{here}:ours", *folders, "bf16", is_ours=True),
        "idiomatic": OwnProcess(f"{here}:idiomatic", data_dir),
        "floor": OwnProcess(f"{here}:floor", *folders, is_ours=True),
    }
    with ending(ways):
        timings = in_turn(rounds, ways)
    return {
        "MNIST epoch, s": timings.median("ours"),
        "  idiomatic loop, s": timings.median("idiomatic"),
        "  bare computation, s": timings.median("floor"),
        "  idiomatic loop / ours": timings.ratio("idiomatic", "ours"),
        "  ours / bare computation": timings.ratio("ours", "floor"),
        "  idiomatic loop / ours with bf16": timings.ratio("idiomatic", "bf16"),
    }


def config(data_dir: Path, save_dir: Path) -> dict:
    return {
        "name": "Benchmark",
        "seed": 1,
        "n_gpu": 0,
        "arch": {"type": "LeNet", "args": {"num_classes": 10}},
        "data_loader": {
            "type": "MnistDataLoader",
            "args": {  # as in pytorch-template's config; data in memory starts no workers
                "data_dir": str(data_dir),
                "batch_size": BATCH,
                "validation_split": 0.1,
                "num_workers": 2,
            },
        },
        "optimizer": {"type": "Adam", "args": {"lr": RATE}},
        "loss": "cross_entropy",
        "metrics": ["accuracy", "top_k_acc"],
        "trainer": {
            "epochs": 1000,
            "save_dir": str(save_dir),
            "keep_last": 2,
            "monitor": "max val_accuracy",
            "tensorboard": True,
        },
    }


def small_config(data_dir: Path, save_dir: Path) -> dict:
    """The same with a tenth of the samples, for many epochs."""
    settings = config(data_dir, save_dir)
    settings["data_loader"]["args"]["validation_split"] = 0.9
    settings["data_loader"]["args"]["batch_size"] = 64
    return settings


def epochs_of(trainer: Any) -> Callable[[], None]:
    """A function that trains the next epoch, checkpoint and log included."""

    def epoch() -> None:
        trainer._run_epoch(trainer.epoch)
        trainer.epoch += 1

    return epoch


def ours(data_dir: str, save_dir: str, precision: str) -> Callable[[], None]:
    settings = config(Path(data_dir), Path(save_dir))
    return epochs_of(build(settings | {"engine": {"precision": precision}}))


def idiomatic(data_dir: str) -> Callable[[], None]:
    """As in torchvision's and torch's examples: a data set with transforms, a DataLoader with two
    workers.
    """
    from torchvision import datasets, transforms

    from model.model import LeNet

    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )
    samples = datasets.MNIST(data_dir, train=True, transform=transform)
    train, valid = random_split(samples, [54_000, 6_000])
    train_loader = DataLoader(train, BATCH, shuffle=True, num_workers=2)
    valid_loader = DataLoader(valid, 1000, num_workers=2)
    model = LeNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)

    return lambda: usual_epoch(model, train_loader, valid_loader, optimizer)


def usual_epoch(
    model: torch.nn.Module,
    train: DataLoader,
    valid: DataLoader,
    optimizer: torch.optim.Optimizer,
) -> None:
    """An epoch as people write it: loss and accuracy are read at each batch."""
    model.train()
    total = correct = 0.0
    for data, target in train:
        optimizer.zero_grad()
        output = model(data)
        loss = F.cross_entropy(output, target)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(data)
        correct += (output.argmax(1) == target).sum().item()
    model.eval()
    with torch.no_grad():
        sum((model(data).argmax(1) == target).sum().item() for data, target in valid)


def floor(data_dir: str, save_dir: str) -> Callable[[], None]:
    """The same computation and nothing else: bytes in memory, whole batches, channels_last, a fused
    optimizer, freed memory that is kept.
    """
    trainer = build(config(Path(data_dir), Path(save_dir)))
    model, samples = trainer.model, trainer.data_loader.samples
    images, targets, mean, std = samples.images, samples.targets, samples.mean, samples.std
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    train, valid = trainer.data_loader.dataset.indices, trainer.valid_data_loader.dataset.indices
    train, valid = torch.from_numpy(train), torch.from_numpy(valid)

    def batch(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        data = images[chosen].float().div_(255).sub_(mean).div_(std)
        return data.to(memory_format=torch.channels_last), targets[chosen]

    def epoch() -> None:
        model.train()
        for chosen in train[torch.randperm(len(train))].split(BATCH):
            data, target = batch(chosen)
            loss = F.cross_entropy(model(data), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        model.eval()
        with torch.no_grad():
            for chosen in valid.split(BATCH):
                data, target = batch(chosen)
                F.cross_entropy(model(data), target)

    return epoch
