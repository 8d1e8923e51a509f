"""Predicts individual images with a trained classifier, without labels and without its data set."""

import functools
import itertools
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from base.base_task import Step
from data_loader.files import find_files
from data_loader.images import read_image
from data_loader.transforms import padded
from logger.charts import to_pil_image
from logger.files import file_names
from logger.logger import setup_logging
from model.heads import main_output
from tester.charts import overlay
from tester.heatmap import heat_maps
from tester.novelty import compare, watched
from tester.predictions import Predictions, is_image, write_table
from tester.trained import build_engine, test_folder
from trainer.build import build_trained_network, trained_state
from trainer.tasks import MultiLabelTask
from utils import checkpoint
from utils.config.config import ConfigParser
from utils.engine.engine import unwrap
from utils.errors import RunError, UserError
from utils.files import named, printable

LIKELIEST = 3


def predict_images(
    config: ConfigParser,
    images: list[str],
    device: str | None,
    heatmap: bool,
    threads: int,
    check: bool = False,
) -> Path:
    """Predict the image files and folders `images`; returns the path of the table.

    Writes test/images/predictions.csv beside the checkpoint and, with `heatmap`, heatmaps/ beside
    that; with `check` only for the first file, and into a temporary folder. Raises UserError for
    missing files, folders without images and unsuitable networks, and at the end RunError if some
    files could not be read.
    """
    setup_logging()
    logger = logging.getLogger("test")
    files, state = list(find_images(images))[: 1 if check else None], trained_state(config)
    if not is_image(shape := state["input"]["shape"]):
        raise UserError(f"--images: the network takes inputs of shape {shape}, not images")
    if heatmap and checkpoint.reader_for(Path(config.resume)):
        raise UserError(
            f"--heatmap: {config.resume} has no layers to look at; pass its checkpoint instead"
        )
    engine = build_engine(config, device)
    model = engine.prepare(build_trained_network(config, threads))
    if config.get("task") and issubclass(config.init_ftn("task").func, MultiLabelTask):
        raise UserError("--images: names one class per image, but the network gives several labels")
    read, prepare = preparation(config, state["input"])
    takes_images = getattr(unwrap(model), "takes_images", False)
    temporary = tempfile.TemporaryDirectory(prefix="check-") if check else None
    folder = Path(temporary.name) if temporary else test_folder(config.resume) / "images"
    (folder / "heatmaps" if heatmap else folder).mkdir(parents=True, exist_ok=True)
    classes, inspection, novelty = map(state.get, ("classes", "inspection", "novelty"))
    rows, unreadable, distances = [], [], []
    seen = Predictions(classes, inspection=inspection)
    names = [printable(str(file)) for file in files]
    overlay_names = file_names((Path(name).stem for name in names), ".jpg")
    for file, name, overlay_name in zip(files, names, overlay_names, strict=True):
        try:
            image = read(file)
            data = engine.to_device(prepare(image))[None]
        except UserError as error:
            logger.warning(f"{error}")
            unreadable.append(name)
            continue
        with watched(unwrap(model), novelty) as found, torch.no_grad():
            shown = padded([image]) if takes_images else (data,)
            output = main_output(model(*engine.to_device(shown)))
        step = Step(None, output, torch.zeros(1, dtype=torch.long), 1, data)  # no label: 0
        answer = Predictions(classes, inspection=inspection)
        answer.add(step)
        seen.add(step)
        if not answer.is_classification:
            raise UserError(
                "--images: the network is not a classifier: its output is not (N, classes)"
            )
        answer.add_distances(found[-1:])
        distances += found[-1:]
        probability = answer.probabilities[0]
        order = probability.argsort()[::-1][:LIKELIEST]
        likeliest = [f"{answer.classes[n]} {probability[n]:.4f}" for n in order]
        line = f"{name}: {', '.join(likeliest)}"
        cells = {column: value for column, [value] in answer.columns().items() if column != "true"}
        row = {"picture": name, "predicted": cells["predicted"]}
        if inspection:
            row["decision"] = cells.get("decision", cells["predicted"])
            line += f" -> {row['decision']}"
        logger.info(line)
        rows.append(row | cells | row)  # the order of the first, the values of the last
        if heatmap:
            number = torch.tensor([int(order[0])])
            heat = heat_maps(model, data, number, **config.get("heatmap", {}))[0]
            image = overlay(to_pil_image(data[0], state["input"]), heat)
            with named(path := folder / "heatmaps" / overlay_name):
                image.save(path, quality=95)
    problem = f"{len(unreadable)} of {len(files)} could not be read: {', '.join(unreadable)}"
    if not rows:  # earlier predictions stay
        raise RunError(problem)
    table = folder / "predictions.csv"
    write_table(table, {column: [row[column] for row in rows] for column in rows[0]})
    if novelty:
        seen.add_distances(distances)
        compare(seen, novelty, "images")
    logger.info("check passed" if check and not unreadable else f"written: {table}")
    if unreadable:
        raise RunError(problem)
    return table


def find_images(paths: Iterable[str]) -> Iterator[Path]:
    """The files among `paths`, and the image files below the folders among them, sorted."""
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"--images: there is no {printable(str(path))}")
        if path.is_dir():
            images, notes = find_files(path)
            if not any(images.values()):
                raise UserError(f"--images: there are no images in {printable(str(path))}")
            for note in notes:
                logging.getLogger("test").info(note)
            yield from map(Path, itertools.chain.from_iterable(images.values()))
        else:
            yield path


def preparation(
    config: ConfigParser, input_spec: dict
) -> tuple[Callable[[Path], Tensor], Callable[[Tensor], Tensor]]:
    """Functions from an image file to the image as read, uint8 (C, h, w), and from that to the
    network's input (C, H, W), as in a checkpoint's "input".

    The data loader prepares the image if it can; otherwise it is resized and normalized.
    """
    scaled_from = input_spec.get("range") or "file"
    read = functools.partial(read_image, channels=input_spec["shape"][0], pixel_range=scaled_from)
    if not hasattr(config.init_ftn("data_loader").func, "prepare"):
        return read, functools.partial(plain_preparation, input_spec=input_spec)
    loader = config.init_obj("data_loader")
    return getattr(loader, "read", read), loader.prepare


def plain_preparation(image: Tensor, input_spec: dict) -> Tensor:
    """Resize an image, uint8 (C, h, w), to `input_spec["shape"]`; subtract mean, divide by std."""
    size = input_spec["shape"][1:]
    data = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    mean = torch.tensor(input_spec.get("mean") or [0.0]).view(-1, 1, 1)
    std = torch.tensor(input_spec.get("std") or [1.0]).view(-1, 1, 1)
    return (data.round() / 255 - mean) / std  # rounded, like an image that was resized elsewhere
