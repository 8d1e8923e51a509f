"""ResNet-18 at 64 pixels from a folder of images: ours, the usual loop, and other projects.

Each trains for some epochs from a fresh start, with a validation after each, and is given what its
documentation shows: its own loader, two workers, its own logging and checkpoints. Those that are
not installed are left out: `pip install lightning timm ultralytics`.
"""

import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader

from tests.benchmarks.epochs import usual_epoch
from tests.benchmarks.measure import OwnProcess, ending, in_turn
from tests.conftest import build

SIDE, BATCH, RATE, WORKERS = 64, 32, 0.01, 2


def peers(data: Path, save_dir: Path, rounds: int, epochs: int = 2) -> dict[str, float]:
    """Time of the others over ours, and of Lightning's over ours where both train in bf16; each in
    a process of its own, as its users run it.
    """
    commands = {"ours": ("ours", "tf32"), "usual loop": ("usual_loop",)}
    if importlib.util.find_spec("lightning"):
        commands["lightning"] = "lightning", "32-true"
        commands["ours, bf16"] = "ours", "bf16"
        commands["lightning, bf16"] = "lightning", "bf16-mixed"
    commands |= {
        name: (function,)
        for name, function in {"timm": "timm_loop", "ultralytics": "ultralytics"}.items()
        if importlib.util.find_spec(name)
    }
    ways = {
        name: OwnProcess(f"{__name__}:way", function, data, save_dir, epochs, *precision,
                         is_ours=function == "ours")
        for name, (function, *precision) in commands.items()
    }  # fmt: skip
    with ending(ways):
        timings = in_turn(rounds, ways)
    figures = {f"{epochs} epochs of ResNet-18 from {data.name}, s": timings.median("ours")}
    for name in list(ways)[1:]:
        base = "ours, bf16" if name.startswith("lightning,") else "ours"
        figures[f"  {name} / {base}"] = timings.ratio(name, base)
    return figures


def camera_images(source: Path, folder: Path, side: int = 1024) -> Path:
    """The images of `source` as large as a camera's, in `folder`."""
    for file in source.rglob("*.jpg"):
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            scale = side / max(image.size)
            size = round(image.width * scale), round(image.height * scale)
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(target, quality=90)
    return folder


def way(function: str, data: str, save_dir: str, epochs: str, *precision: str) -> Callable:
    """Training by one of the functions below."""
    return lambda: globals()[function](Path(data), Path(save_dir), int(epochs), *precision)


def ours(data: Path, save_dir: Path, epochs: int, precision: str) -> None:
    """With the check of all images and the first decoding."""
    shutil.rmtree(data.with_name(f"{data.name}.cache"), ignore_errors=True)
    args = {
        "data_dir": str(data),
        "image_size": SIDE,
        "batch_size": BATCH,
        "transforms": "imagenet",
    }
    trainer = build({
        "name": "Peers", "n_gpu": 0, "arch": "resnet18", "engine": {"precision": precision},
        "data_loader": {"type": "ImageFolderDataLoader", "args": args},
        "optimizer": {"type": "SGD", "args": {"lr": RATE, "momentum": 0.9}},
        "loss": "cross_entropy", "metrics": ["accuracy"],
        "trainer": {"epochs": epochs, "save_dir": str(save_dir), "monitor": "max val_accuracy"},
    })  # fmt: skip
    trainer.train()


def loaders(data: Path) -> tuple[DataLoader, DataLoader]:
    """As in torchvision's reference for training."""
    from torchvision import datasets, transforms

    end = [
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    augment = [transforms.RandomResizedCrop(SIDE), transforms.RandomHorizontalFlip()]
    resize = [transforms.Resize(int(SIDE / 0.875)), transforms.CenterCrop(SIDE)]
    train = datasets.ImageFolder(str(data / "train"), transforms.Compose([*augment, *end]))
    valid = datasets.ImageFolder(str(data / "val"), transforms.Compose([*resize, *end]))
    options = {"batch_size": BATCH, "num_workers": WORKERS, "persistent_workers": True}
    return DataLoader(train, shuffle=True, **options), DataLoader(valid, **options)


def network(data: Path) -> torch.nn.Module:
    from torchvision import models

    return models.resnet18(num_classes=len(os.listdir(data / "train")))


def usual_loop(data: Path, save_dir: Path, epochs: int) -> None:
    _epochs(epochs, network(data), *loaders(data))


def timm_loop(data: Path, save_dir: Path, epochs: int) -> None:
    """timm's data sets, loaders, model and optimizer, in the loop of its documentation."""
    import timm
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2

    options = {"input_size": (3, SIDE, SIDE), "batch_size": BATCH, "num_workers": WORKERS,
               "use_prefetcher": False, "device": torch.device("cpu")}  # fmt: skip
    parts = [create_dataset("", root=str(data / part)) for part in ("train", "val")]
    train = create_loader(parts[0], is_training=True, **options)
    valid = create_loader(parts[1], is_training=False, **options)
    model = timm.create_model("resnet18", num_classes=len(os.listdir(data / "train")))
    _epochs(epochs, model, train, valid, create_optimizer_v2(model, "momentum", lr=RATE))


def _epochs(
    epochs: int,
    model: torch.nn.Module,
    train: DataLoader,
    valid: DataLoader,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    for _ in range(epochs):
        usual_epoch(model, train, valid, optimizer)


def lightning(data: Path, save_dir: Path, epochs: int, precision: str) -> None:
    import lightning as L

    class Classifier(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network(data)

        def training_step(self, batch: list, number: int) -> torch.Tensor:
            return self._log(batch, "train", prog_bar=True)

        def validation_step(self, batch: list, number: int) -> None:
            self._log(batch, "val")

        def _log(self, batch: list, name: str, **options: bool) -> torch.Tensor:
            output = self.network(batch[0])
            loss = F.cross_entropy(output, batch[1])
            accuracy = (output.argmax(1) == batch[1]).float().mean()
            self.log_dict(
                {f"{name}_loss": loss, f"{name}_accuracy": accuracy}, on_epoch=True, **options
            )
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=RATE, momentum=0.9)

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, precision=precision,
        default_root_dir=tempfile.mkdtemp(dir=save_dir),
    )  # fmt: skip
    trainer.fit(Classifier(), *loaders(data))


def ultralytics(data: Path, save_dir: Path, epochs: int) -> None:
    """Its classifier with its own smallest network, which is smaller than ResNet-18."""
    from ultralytics import YOLO

    YOLO("yolov8n-cls.yaml").train(
        data=str(data), epochs=epochs, imgsz=SIDE, batch=BATCH, device="cpu", workers=WORKERS,
        optimizer="SGD", lr0=RATE, project=tempfile.mkdtemp(dir=save_dir), verbose=False,
        plots=False, amp=False,
    )  # fmt: skip
