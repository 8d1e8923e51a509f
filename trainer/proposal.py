"""A configuration for a folder of images, by their number, size and colours: train.py --data."""

import json
import math
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_loader.files import DataFolder
from data_loader.images import read_image
from trainer.decisions import class_number
from utils.errors import UserError
from utils.files import ROOT, safe_name, write_text

LOOKED_AT = 200  # images whose size and colours are looked at
SPLIT = [0.6, 0.2, 0.2]
VALIDATION = 0.2
SMALL = 40  # pixels of the shorter side, up to which a network for small images is taken
SIDES = 96, 64  # pixels, for others; the larger one if there is time for EPOCHS[0] epochs
EPOCHS = 40, 100  # at least, if there is time, and at most
# Passes of an image of 64 x 64 pixels through a ResNet-18: about five minutes on two cores.
BUDGET = 50_000
RARE = 3  # times as many images as another class: that one is drawn more often
# networks that weights from elsewhere may belong to, the likelier first
BUILDERS = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "resnet34",
            "resnet50", "efficientnet_b0", "shufflenet_v2_x1_0", "squeezenet1_1", "mnasnet1_0",
            "regnet_x_400mf", "densenet121", "convnext_tiny", "vgg16", "alexnet")  # fmt: skip


class Survey(NamedTuple):
    """What a folder of images holds: images for training by class, its parts, the median of the
    shorter sides in pixels, whether all are grey."""

    counts: dict[str, int]
    parts: list[str]
    side: int
    is_grey: bool


def propose(folder: Path, target: str | None, weights: str | None) -> Path:
    """Write configs/<folder>.json for the images in `folder`; returns its path.

    A file that is there already is used as it is.

    Args:
        folder: contains folders train, val and test, or the classes' folders
        target: the class that must not be missed
        weights: file of a trained network, or "DEFAULT"

    Raises UserError if there are no classes with images.
    """
    path = ROOT / "configs" / f"{safe_name(folder.resolve().name) or 'images'}.json"
    shown = path.relative_to(ROOT)
    if path.exists():
        print(f"{shown} is there already, and used as it is")
        return path
    found = survey(folder)
    if target is not None:
        class_number(target, list(found.counts))
    text = configuration(folder, found, target, weights)
    path.parent.mkdir(exist_ok=True)
    write_text(path, text)
    print(f"written: {shown}\n\n{text}")
    return path


def survey(folder: Path) -> Survey:
    """Look at a folder. Raises UserError if it holds no classes with images."""
    data = DataFolder(folder, None, None, seed=0)
    parts = [part for part in ("train", "val", "test") if part in data.subsets]
    if "train" not in parts:
        data, parts = DataFolder(folder, SPLIT, None, seed=0), []
    images, _ = data.find("train")
    counts = {name: len(paths) for name, paths in images.items() if paths}
    if len(counts) < 2:
        raise UserError(
            f"--data: {folder} should contain one folder with images for each class, or train, val "
            f"and test with these; found: {', '.join(counts) or 'none'}"
        )
    paths = [path for paths in images.values() for path in paths]
    sides, grey = [], []
    for path in random.Random(0).sample(paths, min(LOOKED_AT, len(paths))):
        try:
            with Image.open(path) as image:
                sides.append(min(image.size))
            grey.append(_is_grey(read_image(path, channels=3, pixel_range="file").numpy()))
        except (UserError, OSError, ValueError):
            continue  # the check before the training names it
    if not sides:
        raise UserError(f"--data: none of the images in {folder} can be read")
    return Survey(counts, parts, round(np.median(sides)), all(grey))


def _is_grey(image: np.ndarray) -> bool:
    red, green, blue = image.astype(int)
    return max(abs(red - green).mean(), abs(green - blue).mean()) < 1


def configuration(folder: Path, found: Survey, target: str | None, weights: str | None) -> str:
    """The configuration, with comments."""
    count = sum(found.counts.values())
    trained = count * (1 if "val" in found.parts else 1 - VALIDATION if found.parts else SPLIT[0])
    network, side, epochs = _network(found, trained)
    if weights is not None:
        network = {"type": builder_of(weights), "weights": weights, "freeze": "backbone"}
        side, epochs = 224, 20
    batch = 32 if trained >= 500 else 16
    is_uneven = max(found.counts.values()) >= RARE * min(found.counts.values())
    arguments = {"data_dir": str(folder), "image_size": side, "batch_size": batch}
    arguments |= {"channels": 1 if found.is_grey and weights is None else 3}
    if not found.parts:
        arguments |= {"split": SPLIT, "stratify": True}
    elif "val" not in found.parts:
        arguments["validation_split"] = VALIDATION
    if is_uneven:
        arguments["balance"] = "sampler"
    arguments["normalize"] = "imagenet" if weights else "data"
    arguments["transforms"] = _transforms(side, target, weights)
    rate = 0.05 * batch / 32
    optimizer = {"type": "SGD", "args": {"lr": rate, "momentum": 0.9, "nesterov": True,
                                         "weight_decay": 0.0005}, "no_decay": True}  # fmt: skip
    schedule = {"type": "OneCycleLR", "args": {"max_lr": rate}}
    if weights:
        optimizer, schedule = {"type": "Adam", "args": {"lr": 0.003}}, None
    smoothing = {} if target else {"label_smoothing": 0.1}
    monitor = "max val_balanced_accuracy" if is_uneven or target else "max val_accuracy"
    lines = {
        "name": safe_name(folder.resolve().name) or "images",
        "seed": 123,
        "n_gpu": 1,
        "arch": network,
        "data_loader": {"type": "ImageFolderDataLoader", "args": arguments},
        "optimizer": optimizer,
        "loss": {"type": "cross_entropy", "args": smoothing},
        "metrics": ["accuracy", "recall", "balanced_accuracy"],
        "lr_scheduler": schedule,
        "inspection": {"target": target, "max_escape": 0.0} if target else None,
        "trainer": {"epochs": epochs, "save_dir": "saved/", "keep_last": 2, "monitor": monitor},
    }
    comments = {
        "arch": f"for {count:,} images, {round(trained):,} of them for training; their shorter "
        f"sides have {found.side} pixels",
        "data_loader": f"classes: {', '.join(f'{k} {v}' for k, v in found.counts.items())}",
        "trainer": f"a larger image_size or more epochs take longer: {epochs} epochs are about "
        "five minutes on two cores",
    }
    return _with_comments(lines, comments)


def _network(found: Survey, trained: float) -> tuple[dict, int, int]:
    """The section "arch", the image size and the epochs for so many training images."""
    if found.side <= SMALL:
        side = max(16, 4 * math.ceil(found.side / 4))
        network, cost = {"type": "CifarResNet", "args": {"depth": 20}}, (side / 32) ** 2 * 0.6
    else:
        affordable = [s for s in SIDES if BUDGET / ((s / 64) ** 2 * trained) >= EPOCHS[0]]
        side = min(next(iter(affordable), SIDES[-1]), 32 * math.ceil(found.side / 32))
        network, cost = {"type": "resnet18"}, (side / 64) ** 2
    epochs = round(BUDGET / (cost * trained))
    return network, side, min(max(epochs, 10), EPOCHS[1])


def _transforms(side: int, target: str | None, weights: str | None) -> dict | str:
    if weights:
        steps = [{"type": "Resize", "args": {"size": round(side * 256 / 224)}},
                 {"type": "CenterCrop", "args": {"size": side}}]  # fmt: skip
        return {"train": steps, "eval": steps}
    light = {"type": "ColorJitter", "args": {"brightness": 0.3, "contrast": 0.3}}
    if target:  # a crop may lose the defect
        move = {"type": "RandomAffine",
                "args": {"degrees": 5, "translate": [0.05, 0.05], "scale": [0.9, 1.1]}}  # fmt: skip
        size = {"type": "Resize", "args": {"size": [side, side]}}
        flips = ["RandomHorizontalFlip", "RandomVerticalFlip"]
        return {"train": [size, move, *flips, light], "eval": []}
    crop = {"type": "RandomResizedCrop", "args": {"size": side, "scale": [0.5, 1.0]}}
    return {"train": [crop, "RandomHorizontalFlip", light], "eval": []}


def builder_of(weights: str) -> str:
    """torchvision's network that a file of weights belongs to. Raises UserError."""
    if weights == "DEFAULT":
        return BUILDERS[0]
    from torchvision import models

    from model.weights import read_weights

    shapes = {name: value.shape for name, value in read_weights(Path(weights)).items()}
    for builder in BUILDERS:
        own = models.get_model(builder).state_dict()
        same = [name for name in own if name in shapes and own[name].shape == shapes[name]]
        if len(same) >= 0.9 * len(own):  # but for the head
            return builder
    raise UserError(f"--weights: {weights} belongs to none of {', '.join(BUILDERS)}")


def _with_comments(sections: dict, comments: dict[str, str]) -> str:
    """JSON, a section in a line if that is short, below its comment."""
    parts = []
    for name, value in sections.items():
        if value is not None:
            text = json.dumps(value, ensure_ascii=False)
            if len(text) > 80:
                text = _indented(value, 1)
            comment = f"  // {comments[name]}\n" if name in comments else ""
            parts.append(f"{comment}  {json.dumps(name)}: {text}")
    schema = '  "$schema": "../docs/config.schema.json",'
    return "\n".join(["{", schema, ",\n".join(parts), "}", ""])


def _indented(value: object, depth: int) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or len(text) + 2 * depth <= 80:
        return text
    space, opening, closing = "  " * (depth + 1), "{", "}"
    if isinstance(value, list):
        items, opening, closing = [_indented(part, depth + 1) for part in value], "[", "]"
    else:
        items = [f"{json.dumps(k)}: {_indented(part, depth + 1)}" for k, part in value.items()]
    inner = f",\n{space}".join(items)
    return f"{opening}\n{space}{inner}\n{'  ' * depth}{closing}"
