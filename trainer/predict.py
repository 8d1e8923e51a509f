"""What a trained classifier says of loose pictures, without labels and without its data set."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_loader.pictures import read_picture
from logger import as_picture, file_names, overlay, probability_columns, rounded, setup_logging, test_folder, write_csv
from trainer.heatmap import heat_maps
from trainer.predictions import class_names
from trainer.start import build_trained_network, keep_normalisation, machine, trained_state
from utils import onnx_file
from utils.errors import RunError, UserError

LIKELIEST = 3


def predict_images(config: Any) -> Path:
    """Name the likeliest classes of the pictures that --images names; returns the table's path.

    Written are test/images/predictions.csv beside the checkpoint and, with --heatmap, heatmaps/ beside that. Raises
    UserError for what is not there or holds no picture, at the end RunError where some could not be read.
    """
    setup_logging()
    logger = config.get_logger("test")
    if config.arguments.heatmap and config.resume.suffix == onnx_file.SUFFIX:
        raise UserError(f"--heatmap: {config.resume} has no layers to look at; name the checkpoint it was made from")
    files = list(find_pictures(config.arguments.images))
    state = trained_state(config)
    channels, *size = state["input"]["shape"]
    if len(size) != 2 or channels not in (1, 3):
        raise UserError(f"--images: the network takes no pictures, but inputs of {state['input']['shape']}")
    engine = machine(config)
    model = engine.prepare(build_trained_network(config))
    read = preparation(config, state["input"])
    folder = test_folder(config.resume) / "images"
    folder.mkdir(parents=True, exist_ok=True)
    overlays = dict(zip(files, file_names((file.stem for file in files), ".jpg"), strict=True))
    rows, unreadable, classes, chosen = [], [], [], state.get("inspection")
    for file in files:
        try:
            data = engine.to_device(read(file))[None]
        except UserError as error:
            logger.warning(f"{error}")
            unreadable.append(file)
            continue
        probability = probabilities(model, data)
        classes = classes or class_names(len(probability), state.get("classes"))
        order = probability.argsort(descending=True).tolist()
        decision = [decide(probability, classes, chosen)] if chosen else []
        said = ", ".join(f"{classes[number]} {probability[number]:.4f}" for number in order[:LIKELIEST])
        logger.info(f"{file}: {said}" + "".join(f" -> {name}" for name in decision))
        rows.append([file, classes[order[0]], *decision, *rounded(probability.tolist())])
        if config.arguments.heatmap:
            heat = heat_maps(model, data, torch.tensor(order[:1], device=data.device), **config.get("heatmap", {}))[0]
            (folder / "heatmaps").mkdir(exist_ok=True)
            overlay(as_picture(data[0], state["input"]), heat).save(folder / "heatmaps" / overlays[file], quality=95)
    table = folder / "predictions.csv"
    write_csv(table, ["picture", "predicted", *(["decision"] if chosen else []), *probability_columns(classes)], rows)
    logger.info(f"written: {table}")
    if unreadable:
        raise RunError(f"{len(unreadable)} of {len(files)} could not be read: {', '.join(map(str, unreadable))}")
    return table


def find_pictures(places: list[str]) -> Iterator[Path]:
    """The files named, and those below the folders named that have a picture's suffix, in order."""
    from PIL import Image

    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    for place in map(Path, places):
        if not place.exists():
            raise UserError(f"--images: there is no {place}")
        files = [place]
        if place.is_dir():
            files = sorted(p for p in place.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
            if not files:
                raise UserError(f"--images: there are no pictures in {place}")
        yield from files


def preparation(config: Any, wanted: dict) -> Callable[[Path], Tensor]:
    """The function that makes a network's input (C, H, W) of a picture's file, as `wanted`, a checkpoint's "input", says:
    by the data loader where it can, else by resizing and normalisation."""
    if not hasattr(config.init_ftn("data_loader").func, "prepare"):
        return lambda path: plain_preparation(read_picture(path, wanted["shape"][0]), wanted)
    keep_normalisation(config, wanted)
    loader = config.init_obj("data_loader")
    read = getattr(loader, "read", functools.partial(read_picture, channels=wanted["shape"][0]))
    return lambda path: loader.prepare(read(path))


def plain_preparation(picture: Tensor, wanted: dict) -> Tensor:
    """A picture, uint8 (C, h, w), in `wanted["shape"]`, from 0 to 1, without its mean and divided by its std."""
    data = F.interpolate(picture[None].float(), wanted["shape"][1:], mode="bilinear", antialias=True, align_corners=False)[0]
    mean, std = (torch.tensor(wanted.get(key) or [same]).view(-1, 1, 1) for key, same in (("mean", 0.0), ("std", 1.0)))
    return (data.round() / 255 - mean) / std  # rounded, as a picture that was resized elsewhere is


@torch.no_grad()
def probabilities(model: nn.Module, data: Tensor) -> Tensor:
    """Of each class, for one picture (1, C, H, W). Raises UserError where the model is no classifier."""
    output = model(data)
    if output.ndim != 2 or output.shape[1] < 2:
        raise UserError("--images: the network is no classifier, its output is no (N, classes)")
    return output[0].float().softmax(0).cpu()


def decide(probability: Tensor, classes: list[str], chosen: dict) -> str:
    """The class by the stored threshold: the target from there on, else the likeliest of the others."""
    target = classes.index(chosen["target"])
    if probability[target] >= chosen["threshold"]:
        return chosen["target"]
    others = probability.clone()
    others[target] = -1
    return classes[int(others.argmax())]
