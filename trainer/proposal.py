"""A configuration for a folder or a table of images, by their number, size and colours, for the
option --data of train.py and new_project.py."""

import json
import math
import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_loader.files import NAMES, SUBSETS, DataFolder, Files, find_files
from data_loader.images import read_image
from data_loader.label_table import LabelTable
from utils.config import config_file
from utils.config.sections import PROPOSED
from utils.errors import UserError
from utils.files import ROOT, safe_name, write_text

TABLES = (".csv", ".tsv")
LOOKED_AT = 200  # images whose size and colours are looked at
SPLIT = [0.6, 0.2, 0.2]
VALIDATION = 0.2
SMALL = 40  # pixels of the shorter side, up to which a network for small images is taken
SIDE = 96  # pixels, for others
FEW = 500  # images for training, up to which a ResNet-18 is taken: with few steps it learns more
MEASURED = 1  # seconds, to find out how fast this machine trains
MINUTES = 5  # of training steps; loading and validation come on top
EPOCHS = 10, 100  # at least, and at most
# Few validation images make each epoch's figure a game of chance; averaged weights calm it down.
EMA = 0.98
# none of the validation data may be missed; where that would call many others so, a person decides
DECISION = {"max_escape": 0.0, "max_overkill": 0.02}
RARE = 3  # times as many images as another class: that one is drawn more often
# networks that weights from elsewhere may belong to, the likelier first
BUILDERS = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "resnet34",
            "resnet50", "efficientnet_b0", "shufflenet_v2_x1_0", "squeezenet1_1", "mnasnet1_0",
            "regnet_x_400mf", "densenet121", "convnext_tiny", "vgg16", "alexnet")  # fmt: skip


class Survey(NamedTuple):
    """What is known of images: how many there are for training by class, the parts that they are in
    (none if they are to be split), the median of the shorter sides in pixels, whether all are grey,
    whether an image may have several classes."""

    counts: dict[str, int]
    parts: list[str]
    side: int
    is_grey: bool
    is_multi_label: bool = False


def propose(data: Path, target: str | None, weights: str | None, device: str | None = None) -> Path:
    """Write configs/<folder>.json for images; returns its path. A file that is there already for
    the same images is used as it is.

    Args:
        data: a folder that contains folders train, val and test, or the classes' folders; or a CSV
            or TSV file with the columns path and label
        target: the class that must not be missed
        weights: file of a trained network, or "DEFAULT"
        device: what -d says: its speed decides on the number of epochs

    Raises UserError if there are no classes with images, or if the file is for something else.
    """
    path = ROOT / "configs" / f"{_name(data)}.json"
    shown = path.relative_to(ROOT)
    if path.exists():
        _check_same(path, data, target, weights)
        print(f"{shown} is there already, and used as it is; rename it to have it written anew")
        return path
    text = configuration(data, target, weights, device=device)
    path.parent.mkdir(exist_ok=True)
    write_text(path, text)
    print(f"written: {shown}\n\n{text}")
    return path


def configuration(
    data: Path,
    target: str | None,
    weights: str | None,
    name: str | None = None,
    schema: str = "../docs/config.schema.json",
    device: str | None = None,
) -> str:
    """The text of a configuration for images, with comments; see `propose`."""
    found = survey(data)
    if target is not None:
        if found.is_multi_label:
            raise UserError("--target: an inspection needs images of one class each")
        if target not in found.counts:
            known = ", ".join(found.counts)
            raise UserError(f'--target: "{target}" is not one of the classes {known}')
    count = sum(found.counts.values())
    trained = count * (1 if "val" in found.parts else 1 - VALIDATION if found.parts else SPLIT[0])
    batch = 32 if trained >= 500 else 16
    rate = 0.002 * batch / 32
    network, side = _network(found, trained)
    # SGD at rates that suit many images stayed at chance with 24 images of the rarer class
    optimizer = {"type": "AdamW", "args": {"lr": rate, "weight_decay": 0.05}, "no_decay": True}
    schedule: str | None = "OneCycleLR"
    if weights is not None:
        network = {"type": builder_of(weights), "weights": weights, "freeze": "backbone"}
        side, epochs = 224, 20  # features of a frozen backbone are computed once
        optimizer, schedule = {"type": "Adam", "args": {"lr": 0.003}}, None
    else:
        passes = 60 * MINUTES * images_per_second(network, side, batch, device)
        epochs = min(max(round(passes / trained), EPOCHS[0]), EPOCHS[1])
    several = found.is_multi_label
    is_uneven = not several and max(found.counts.values()) >= RARE * min(found.counts.values())
    arguments = {"data_dir": str(_folder(data)), "image_size": side, "batch_size": batch}
    if _folder(data) != data:
        arguments["labels"] = data.name
    arguments["channels"] = 1 if found.is_grey and weights is None else 3
    if not found.parts:
        arguments |= {"split": SPLIT, "stratify": True}
    elif "val" not in found.parts:
        arguments["validation_split"] = VALIDATION
    if is_uneven:
        arguments["balance"] = "sampler"
    arguments["normalize"] = "imagenet" if weights else "data"
    arguments["transforms"] = _transforms(side, target, weights)
    loss: dict | str = {"type": "cross_entropy", "args": {} if target else {"label_smoothing": 0.1}}
    metrics: list = ["accuracy", "recall", "balanced_accuracy"]
    monitor = "max val_balanced_accuracy" if is_uneven or target else "max val_accuracy"
    if several:
        loss, monitor = "binary_cross_entropy_with_logits", "max val_mAP"
        labels = {"num_labels": len(found.counts)}
        metrics = [{"type": "MultilabelAveragePrecision", "name": "mAP", "args": labels}]
    lines = {
        "name": name or _name(data),
        "seed": 123,
        "n_gpu": 1,
        "arch": network,
        "data_loader": {"type": "ImageFolderDataLoader", "args": arguments},
        "optimizer": optimizer,
        "task": "MultiLabelTask" if several else None,
        "loss": loss,
        "metrics": metrics,
        "lr_scheduler": schedule,
        "inspection": {"target": target, **DECISION} if target else None,
        "trainer": {
            "epochs": epochs,
            "save_dir": "saved/",
            "keep_last": 2,
            "monitor": monitor,
            **({} if weights else {"ema_decay": EMA}),
        },
        **({} if several else PROPOSED),
    }
    comments = {
        "arch": f"for {count:,} images, {round(trained):,} of them for training; their shorter "
        f"sides have {found.side} pixels",
        "data_loader": f"classes: {', '.join(f'{k} {v}' for k, v in found.counts.items())}",
        "trainer": "as many epochs as this machine trains in some minutes, but "
        f"{EPOCHS[0]} to {EPOCHS[1]}; a larger image_size takes longer",
    }
    return _with_comments(lines, comments, schema)


def _folder(data: Path) -> Path:
    """The folder that holds the images."""
    return data.parent if data.suffix.lower() in TABLES else data


def _name(data: Path) -> str:
    return safe_name(_folder(data).resolve().name) or "images"


def _check_same(path: Path, data: Path, target: str | None, weights: str | None) -> None:
    """Raises UserError if a configuration that is there already is not for this."""
    config, shown = config_file.read_layers(path)[0], path.relative_to(ROOT)

    def get(place: object, *keys: str) -> object:
        for key in keys:
            place = place.get(key) if isinstance(place, dict) else None
        return place

    differences = []
    stored = get(config, "data_loader", "args", "data_dir")
    if isinstance(stored, str) and Path(stored).resolve() != _folder(data).resolve():
        differences.append(f"the images in {stored}")
    options = ("inspection", "target", target), ("arch", "weights", weights)
    for section, key, given in options:
        if given is not None and given != (known := get(config, section, key)):
            differences.append(f"--{key} {known}" if known else f"no --{key}")
    if differences:
        raise UserError(
            f"{shown} is there already, for {' and '.join(differences)}: rename it, and it is "
            f"written anew; or change it, and train by it with -c {shown}"
        )


def survey(data: Path) -> Survey:
    """Look at images. Raises UserError if they do not have two classes, or are those of a subset
    in the folder of a class.
    """
    if not data.exists():
        raise UserError(f"--data: there is no folder or table {data}")
    if data.suffix.lower() in TABLES:
        found: DataFolder = LabelTable(data.parent, None, None, seed=0, table=data.name)
        is_split = any(row.subset for row in found.rows)
        wanted = "should name two classes or more"
    else:
        found = DataFolder(data, None, None, seed=0)
        is_split = "train" in found.subsets
        found = found if is_split else DataFolder(data, SPLIT, None, seed=0)
        wanted = "should contain a folder of images for each class, or train, val, test with those"
    parts = [part for part in SUBSETS if is_split and part in found.subsets]
    images = found.find("train")
    counts = dict(sorted(images.files.counts().items()))
    if len(counts) < 2:
        above = ""
        if data.is_dir() and find_files(data)[0][""]:
            above = f"; if its images are one class, pass the folder above: --data {data.parent}"
        raise UserError(f"--data: {data} {wanted}; found: {', '.join(counts) or 'none'}{above}")
    if data.is_dir() and not is_split:
        _check_depth(data, images.files)
    paths = sorted(set(images.files.paths()))
    sides, grey = [], []
    for path in random.Random(0).sample(paths, min(LOOKED_AT, len(paths))):
        try:
            with Image.open(path) as image:
                sides.append(min(image.size))
            grey.append(_is_grey(read_image(path, channels=3, pixel_range="file").numpy()))
        except (UserError, OSError, ValueError):
            continue  # the check before the training names it
    if not sides:
        raise UserError(f"--data: none of the images in {data} can be read")
    return Survey(counts, parts, round(np.median(sides)), all(grey), found.is_multi_label)


def _check_depth(data: Path, files: Files) -> None:
    """Say that the classes may be the folders below where all images are in some.

    Raises UserError if those have the names of subsets.
    """
    inner = {tuple(name.split("/")[:-1][:2]) for name in files.each_name()}
    if any(len(folders) < 2 for folders in inner):
        return
    top, below = (sorted(set(names)) for names in zip(*inner, strict=True))
    if all(name.lower() in NAMES for name in below):
        raise UserError(
            f"--data: {data} has {below[0]} in {top[0]}; a folder of a subset should contain those "
            f"of the classes: {below[0]}/{top[0]}"
        )
    print(
        f"warning: the classes are {', '.join(top[:4])}, and their images are all in folders of "
        f"these ({', '.join(below[:4])}): if those are the classes, pass a folder that contains "
        f"them, --data {data / top[0]}",
        file=sys.stderr,
    )


def _is_grey(image: np.ndarray) -> bool:
    red, green, blue = image.astype(int)
    return max(abs(red - green).mean(), abs(green - blue).mean()) < 1


def _network(found: Survey, trained: float) -> tuple[dict, int]:
    """The section "arch" and the image size for so many training images."""
    if found.side <= SMALL:
        side = max(16, 4 * math.ceil(found.side / 4))
        return {"type": "CifarResNet", "args": {"depth": 20}}, side
    network = {"type": "resnet18" if trained <= FEW else "mobilenet_v3_small"}
    return network, min(SIDE, 32 * math.ceil(found.side / 32))


def images_per_second(network: dict, side: int, batch: int, device: str | None = None) -> float:
    """How many images this machine trains the network of a section "arch" on in a second, without
    loading them: measured with random ones.
    """
    import torch
    from torchvision import models

    from model.resnet_cifar import CifarResNet
    from utils.engine.engine import Engine

    own = network["type"] == "CifarResNet"
    model = CifarResNet(**network["args"]) if own else models.get_model(network["type"])
    engine = Engine(device)
    model = engine.prepare(model)
    images = engine.to_device(torch.rand(batch, 3, side, side))

    def step() -> None:
        engine.forward(model, images).square().mean().backward()
        engine.synchronize()

    for _ in range(3):  # the first ones are slower
        step()
    begun, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - begun) < MEASURED:
        step()
        count += 1
    return batch * count / spent


def _transforms(side: int, target: str | None, weights: str | None) -> dict | str:
    if weights:
        steps = [{"type": "Resize", "args": {"size": round(side * 256 / 224)}},
                 {"type": "CenterCrop", "args": {"size": side}}]  # fmt: skip
        return {"train": steps, "eval": steps}
    light = {"type": "ColorJitter", "args": {"brightness": 0.3, "contrast": 0.3}}
    if target:  # a crop may lose the defect
        args = {"degrees": 5, "translate": [0.05, 0.05], "scale": [0.9, 1.1], "interpolation": 2}
        move = {"type": "RandomAffine", "args": args}
        size = {"type": "Resize", "args": {"size": [side, side]}}
        flips = ["RandomHorizontalFlip", "RandomVerticalFlip"]
        return {"train": [size, move, *flips, light], "eval": []}
    crop = {"type": "RandomResizedCrop", "args": {"size": side, "scale": [0.35, 1.0]}}
    return {"train": [crop, "RandomHorizontalFlip", light], "eval": []}


def builder_of(weights: str) -> str:
    """torchvision's network that a file of weights belongs to. Raises UserError."""
    if weights == "DEFAULT":
        return BUILDERS[0]
    import torch
    from torchvision import models

    from model.weights import read_weights

    shapes = {name: value.shape for name, value in read_weights(Path(weights)).items()}
    for builder in BUILDERS:
        try:
            with torch.device("meta"):  # only the shapes: initialising weights takes seconds
                own = models.get_model(builder).state_dict()
        except NotImplementedError:  # it computes with its weights
            own = models.get_model(builder).state_dict()
        same = [name for name in own if name in shapes and own[name].shape == shapes[name]]
        if len(same) >= 0.9 * len(own):  # but for the head
            return builder
    raise UserError(f"--weights: {weights} belongs to none of {', '.join(BUILDERS)}")


def _with_comments(sections: dict, comments: dict[str, str], schema: str) -> str:
    """JSON, a section in a line if that is short, below its comment."""
    parts = []
    for name, value in sections.items():
        if value is not None:
            comment = f"  // {comments[name]}\n" if name in comments else ""
            parts.append(f"{comment}  {json.dumps(name)}: {_indented(value, 1)}")
    return "\n".join(["{", f'  "$schema": {json.dumps(schema)},', ",\n".join(parts), "}", ""])


def _indented(value: object, depth: int) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or len(text) + 2 * depth <= 80:
        return text
    if isinstance(value, list):
        items = [_indented(part, depth + 1) for part in value]
    else:
        items = [f"{json.dumps(k)}: {_indented(part, depth + 1)}" for k, part in value.items()]
    inner = ",".join(f"\n{'  ' * (depth + 1)}{item}" for item in items)
    return f"{text[0]}{inner}\n{'  ' * depth}{text[-1]}"
