"""The parts that a run is made of."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from base import BaseDataLoader, BaseTask
from model.structure import resize
from model.weights import load_weights, read_weights, take_channels, torchvision_weights
from trainer.agreement import check_agreement, rows_by_name
from trainer.rehearsal import shorten
from trainer.tasks import fitting_task
from utils import checkpoint
from utils.config import config_file
from utils.config.config import ConfigParser
from utils.engine import distributed
from utils.engine.engine import Engine
from utils.errors import UserError
from utils.versions import versions


def start(config: ConfigParser, device: str | None) -> tuple[Engine, Any]:
    """Start a run: seed its engine, create its folders and log, save its configuration.

    Called on all processes; rank zero writes. `device` is what -d says.
    """
    from logger import Recorder, setup_logging  # imported here: a faulty config is answered before

    engine = create_engine(config, device)
    is_main, settings = distributed.is_main(), config["trainer"]
    log_dir = config.log_dir  # on all processes: they agree on the folder
    setup_logging(log_dir if is_main else None, settings.get("verbosity", 2))
    if is_main:
        used = config.config | {"versions": versions()}
        config_file.write(used, config.save_dir / "config.json")
    else:
        logging.disable(logging.CRITICAL)  # rank zero logs
    seed_and_warn(engine, config)
    return engine, Recorder(log_dir, settings.get("tensorboard", True), keep=is_main)


def create_engine(config: ConfigParser, device: str | None, **changes: object) -> Engine:
    """The engine that the config's section and -d ask for."""
    settings = config.get("engine", {}) | changes
    return Engine(device, config.get("n_gpu", 1), config.get("seed", 0), settings)


def seed_and_warn(engine: Engine, config: ConfigParser) -> None:
    """Seed what is built from here on, and log what the engine and the configuration warn of."""
    engine.seed_epoch(0)
    for message in [*engine.pop_warnings(), *config.warnings]:
        config.get_logger("engine").warning(message)


def build_loaders(config: ConfigParser) -> tuple[BaseDataLoader, BaseDataLoader | None]:
    """The loaders of training and validation data, after a check of the data, which is logged.

    Raises UserError if the data cannot be used.
    """
    data_loader = config.init_obj("data_loader")
    valid_data_loader = build_loader(config, "valid_data_loader", "val")
    valid_data_loader = valid_data_loader or data_loader.split_validation()
    loaders = [loader for loader in (data_loader, valid_data_loader) if loader is not None]
    if valid_data_loader is not None:
        classes, others = data_loader.classes, valid_data_loader.classes
        if None not in (classes, others) and classes != others:
            raise UserError(
                f"valid_data_loader: its classes are {shorten(others)}, those of data_loader "
                f"{shorten(classes)}"
            )
    with distributed.local_main_first():  # one process of a machine downloads and fills caches
        for line in dict.fromkeys(line for loader in loaders for line in loader.check()):
            config.get_logger("data").info(line)
        for loader in loaders:
            len(loader)
    return data_loader, valid_data_loader


def build_loader(config: ConfigParser, section: str, subset: str) -> BaseDataLoader | None:
    """The loader that `section` names, of `subset` unless the config says which; or None."""
    loader = config.init_obj(section, subset=subset)
    wanted = config.option(section, "args", {}).get("subset", subset)
    # a loader whose constructor has no such keyword was built for training
    return loader if loader is None or loader.subset == wanted else loader.for_subset(wanted)


def class_weights(data_loader: BaseDataLoader) -> dict[str, Tensor]:
    """The loss's `weight`, if the loader wants rare classes to count more."""
    weights = data_loader.class_weights
    return {} if weights is None else {"weight": torch.tensor(weights)}


def build_task(
    config: ConfigParser,
    engine: Engine,
    network: nn.Module,
    criterion: Callable,
    classes: list[str] | None = None,
) -> BaseTask:
    """What the config's section "task" names; without it the task that fits the network."""
    criterion = engine.to_device(criterion)
    task = config.init_obj("task", criterion=criterion) or fitting_task(network)(criterion)
    task.classes = classes
    return task


def build_model(
    config: ConfigParser, engine: Engine, data_loader: BaseDataLoader, new_head: bool = True
) -> nn.Module:
    """The network to train, on the engine's device.

    A new run starts with the weights of -r PATH or arch.weights; a head of another size starts
    fresh, one for the same classes in another order is sorted. With `new_head` False, and in a
    resumed run, the data must have the checkpoint's classes.
    """
    logger, rows, classes = config.get_logger("start"), None, data_loader.classes
    if config.resume is not None:
        state = checkpoint.load(config.resume)
        if config.continued or not new_head:
            for line in check_agreement(str(config.resume), state, data_loader):
                logger.warning(line)
        else:
            rows = rows_by_name(state.get("classes"), classes)
    network = build_network(config, classes, data_loader.input["shape"])
    name = config.option("arch", "weights")
    if not config.continued and (config.resume is not None or name is not None):
        if config.resume is not None:
            origin, weights = str(config.resume), read_weights(config.resume)
        elif Path(name).exists() or Path(name).suffix in (".pth", ".pt"):
            origin, weights = name, read_weights(Path(name))
        else:
            origin = f"{name} of torchvision"
            weights = torchvision_weights(config["arch"]["type"], name)
        fresh = load_weights(network, weights, origin, new_head, rows)
        note = f"; starting fresh, as they do not fit: {', '.join(fresh)}" if fresh else ""
        logger.info(f"weights of {origin}{note}")
    return network.to(engine.device)


def build_network(config: ConfigParser, classes: list[str] | None, shape: list[int]) -> nn.Module:
    """The network that arch names, fitted to the data's classes, channels and image size.

    Each is passed if the network takes it and the config is silent, so that a checkpoint, which
    keeps classes and shape, gives the same network again; if that one was pruned, so is this.
    """
    offered: dict[str, Any] = {} if classes is None else {"num_classes": len(classes)}
    if len(shape) == 3:
        channels, height, width = shape
        offered |= {"in_channels": channels, "input_size": (height, width), "init_weights": True}
        offered |= {"image_size": height} if height == width else {}
        offered["weights_backbone"] = None  # torchvision's segmentation would download some
    network = config.init_obj("arch", **offered)
    if len(shape) == 3:
        take_channels(network, shape[0])
    if config.resume is not None:
        resize(network, checkpoint.load(config.resume).get("structure"))
    return network
