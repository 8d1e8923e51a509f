"""The parts that a run is made of."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from base import BaseDataLoader, BaseTask
from base.kept import Kept
from model.structure import resize
from model.weights import load_weights, read_weights, take_channels, torchvision_weights
from trainer.agreement import check_agreement, rows_by_name
from trainer.rehearsal import shorten, unchanged
from trainer.tasks import fitting_task
from utils import checkpoint, lock
from utils.config import config_file
from utils.config.config import ConfigParser
from utils.config.signature import get_signature
from utils.engine import distributed
from utils.engine.engine import Engine, Running, set_memory_format
from utils.engine.randomness import seeded
from utils.errors import UserError, explained_by
from utils.versions import versions


def start(config: ConfigParser, device: str | None) -> tuple[Engine, Any]:
    """Start a run: seed its engine, create its folders and log, save its configuration.

    Called on all processes; rank zero writes. `device` is what -d says. Raises UserError if another
    process trains in the run's folder.
    """
    from logger import Recorder, setup_logging  # imported here: a faulty config is answered before

    engine = create_engine(config, device)
    is_main, settings = distributed.is_main(), config["trainer"]
    log_dir = config.log_dir  # on all processes: they agree on the folder
    distributed.run_on_main(lambda: lock.acquire(config.save_dir))
    setup_logging(log_dir if is_main else None, settings.get("verbosity", 2))
    if is_main:
        used = config.config | {"versions": versions()}
        config_file.write(used, config.save_dir / "config.json")
    else:
        logging.disable(logging.CRITICAL)  # rank zero logs
    seed_and_warn(engine, config)
    trackers = (config.init_obj("trackers") or {}).values() if is_main else ()
    return engine, Recorder(log_dir, settings.get("tensorboard", True), is_main, trackers)


def create_engine(config: ConfigParser, device: str | None, **changes: object) -> Engine:
    """The engine that the config's section and -d ask for."""
    settings = config.get("engine", {}) | changes
    return Engine(device, config.get("n_gpu", 1), config.get("seed", 0), settings)


def seed_and_warn(engine: Engine, config: ConfigParser) -> None:
    """Seed what is built from here on; log where it is computed, and what the engine and the
    configuration warn of.
    """
    engine.seed_epoch(0)
    config.get_logger("engine").info(f"device: {engine.describe()}")
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
    own = loaders if config.get("valid_data_loader") else loaders[:1]  # others are of the same data
    with distributed.local_main_first():  # one process of a machine downloads and fills caches
        for line in dict.fromkeys(line for loader in own for line in loader.check()):
            config.get_logger("data").info(line)
        for loader in loaders:
            len(loader)
    classes, others = loaders[0].classes, loaders[-1].classes
    if None not in (classes, others) and classes != others:
        raise UserError(
            f"valid_data_loader: its classes are {shorten(others)}, those of data_loader "
            f"{shorten(classes)}"
        )
    return data_loader, valid_data_loader


def build_loader(config: ConfigParser, section: str, subset: str) -> BaseDataLoader | None:
    """The loader that `section` names, of `subset` unless the config says which; or None."""
    loader = config.init_obj(section, subset=subset)
    wanted = config.option(section, "args", {}).get("subset", subset)
    # a loader whose constructor has no such keyword was built for training
    if loader is None or loader.subset == wanted:
        return loader
    return loader.for_subset(wanted, own_data=True)


def class_count(data_loader: BaseDataLoader) -> dict[str, int]:
    """`num_classes`, if the data says how many it has."""
    return {"num_classes": len(data_loader.classes)} if data_loader.classes else {}


def class_weights(data_loader: BaseDataLoader) -> dict[str, Tensor]:
    """The loss's `weight`, if the loader wants rare classes to count more."""
    weights = data_loader.class_weights
    return {} if weights is None else {"weight": torch.tensor(weights)}


def build_task(
    config: ConfigParser,
    engine: Engine,
    network: nn.Module,
    criterion: Callable | None,
    data_loader: BaseDataLoader,
) -> BaseTask:
    """What the config's section "task" names; without it the task that fits the network.

    It gets the networks and losses that other sections name, under these sections' names.
    """
    if config.own_sections("arch"):
        engine.avoid_cuda_graphs("several networks")
    criterion = engine.to_device(criterion)
    parts = {s: engine.to_device(config.init_obj(s)) for s in config.own_sections("loss")}
    for section in config.own_sections("arch"):
        other = build_network(config, data_loader.classes, data_loader.input["shape"], section)
        _start_from(config, other, section)
        parts[section] = Running(engine, engine.prepare(other))
    load = functools.partial(load_network, config, engine, data_loader)
    task = config.init_obj("task", criterion=criterion, load_network=load, **parts)
    task = fitting_task(network)(criterion) if task is None else task
    for section in parts.keys() - get_signature(type(task)).parameters:
        name = type(task).__name__
        config.get_logger("task").warning(f"{section}: {name} has no argument of that name")
    vars(task).update(engine.to_device(vars(task)))
    task.classes = data_loader.classes
    return task


def load_network(
    config: ConfigParser, engine: Engine, data_loader: BaseDataLoader, place: str
) -> Running:
    """The trained network of a run or a checkpoint, for a task that learns from it.

    Raises UserError if it was made for other classes than the data's.
    """
    trained = config.from_checkpoint(Path(place))
    for line in check_agreement(str(trained.resume), trained_state(trained), data_loader):
        config.get_logger("task").warning(line)
    return Running(engine, build_trained_network(trained).to(engine.device))


def restore_task(task: BaseTask, state: dict, config: ConfigParser, engine: Engine) -> None:
    """Give a task what a checkpoint keeps of it: networks beside the model, what was decided.

    Raises CheckpointError if the checkpoint lacks some of it.
    """
    kept, task.decided = state.get("kept", {"parts": {}, "values": {}}), state.get("decided")
    task.classes = state.get("classes") or task.classes
    if "kept" not in state and (missing := state.get("task_state")):
        config.get_logger("task").warning(
            f"{config.resume} does not hold {', '.join(missing)} of the task: numbers that follow "
            "from these are those of fresh ones"
        )
        return
    known, parts = Kept({"task": task}, engine), kept["parts"]
    if state["config"] and state["config"].get("loss") != config.get("loss"):
        own = known.state_dict()["parts"]  # another loss keeps its own state
        parts = parts | {k: v for k, v in own.items() if k == "task.criterion"}
    with explained_by(config.resume):
        known.load_state_dict(kept | {"parts": parts})


def build_model(
    config: ConfigParser, engine: Engine, data_loader: BaseDataLoader, new_head: bool = True
) -> nn.Module:
    """The network to train, on the engine's device.

    A new run starts with the weights of -r PATH or arch.weights. A class that these know by its
    name keeps its output, others and a head that does not fit start fresh. With `new_head` False,
    and in a resumed run, the data must have the checkpoint's classes.
    """
    logger, rows, classes = config.get_logger("start"), None, data_loader.classes
    state = {} if config.resume is None else checkpoint.load(config.resume)
    if state and (config.continued or not new_head):
        for line in check_agreement(str(config.resume), state, data_loader):
            logger.warning(line)
    elif (rows := rows_by_name(state.get("classes"), classes)) is not None and None in rows:
        kept = [name for name, row in zip(classes, rows, strict=True) if row is not None]
        new = [name for name in classes if name not in kept]
        logger.info(f"outputs kept by their names: {shorten(kept)}; new: {shorten(new)}")
    network = build_network(config, classes, data_loader.input["shape"])
    falls_back = engine.memory_format == torch.channels_last and not network.takes_channels_last
    if falls_back and not config.continued:
        logger.warning(
            f"arch: {type(network).__name__} cannot take images in the memory format channels_last "
            "(reshape can, where view cannot): contiguous is used, which may be slower"
        )
    _start_from(config, network, "arch", config.resume, new_head, rows)
    return network.to(engine.device)


def _start_from(
    config: ConfigParser,
    network: nn.Module,
    section: str,
    resume: Path | None = None,
    new_head: bool = True,
    rows: list[int | None] | None = None,
) -> None:
    """Load the weights of the checkpoint `resume`, or those that the section names."""
    name = config.option(section, "weights")
    if config.continued or (resume is None and name is None):
        return
    if resume is not None:
        origin, weights = str(resume), read_weights(resume)
    elif Path(name).exists() or Path(name).suffix in (".pth", ".pt"):
        origin, weights = name, read_weights(Path(name))
    else:
        origin = f"{name} of torchvision"
        weights = torchvision_weights(config[section]["type"], name)
    fresh = load_weights(network, weights, origin, new_head, rows)
    note = f"; starting fresh, as they do not fit: {', '.join(fresh)}" if fresh else ""
    config.get_logger("start").info(f"weights of {origin}{note}")


def build_network(
    config: ConfigParser, classes: list[str] | None, shape: list[int], section: str = "arch"
) -> nn.Module:
    """The network that a section names, fitted to the data's classes, channels and image size.

    Each is passed if the network takes it and the config is silent, so that a checkpoint, which
    keeps classes and shape, gives the same network again; if that one was pruned, so is this.
    """
    offered: dict[str, Any] = {} if classes is None else {"num_classes": len(classes)}
    if len(shape) == 3:
        channels, height, width = shape
        offered |= {"in_channels": channels, "input_size": (height, width), "init_weights": True}
        offered |= {"image_size": height} if height == width else {}
        offered["weights_backbone"] = None  # torchvision's segmentation would download some
    network = config.init_obj(section, **offered)
    if len(shape) == 3:
        take_channels(network, shape[0])
    network.takes_channels_last = len(shape) != 3 or takes_channels_last(network, shape)
    if config.resume is not None and section == "arch":
        resize(network, checkpoint.load(config.resume).get("structure"))
    return network


def trained_state(config: ConfigParser) -> dict:
    """The content of the checkpoint, or of a file in another format, that `config.resume` names.

    If it does not know its classes and input, they are taken from the config's data.
    """
    state = checkpoint.load(config.resume)
    if state["input"] is None:
        loader = config.init_obj("data_loader")
        state |= {"classes": loader.classes, "input": loader.input}
    return state


def build_trained_network(config: ConfigParser, threads: int = 1) -> nn.Module:
    """The network that `config.resume` names, in evaluation mode; the averaged one if there is one.

    A file in another format is run by its own runtime, on `threads` threads. Raises CheckpointError
    if the weights do not fit the network.
    """
    state, path = trained_state(config), Path(config.resume)
    if reader := checkpoint.reader_for(path):
        return reader.network(path, state, threads).eval()
    network = build_network(config, state["classes"], state["input"]["shape"])
    load_weights(network, read_weights(path), str(path), new_head=False)
    return network.eval()


def takes_channels_last(network: nn.Module, shape: list[int]) -> bool:
    """False if the network takes images of this shape only in the contiguous memory format.

    One that flattens by x.view does. If it fails in both, the reason is another one.
    """
    taken = _takes(network, shape, torch.channels_last)
    set_memory_format(network, torch.contiguous_format)
    return taken or not _takes(network, shape, torch.contiguous_format)


@torch.no_grad()
def _takes(network: nn.Module, shape: list[int], memory_format: torch.memory_format) -> bool:
    set_memory_format(network, memory_format)
    with seeded("memory format"), unchanged([network]):
        network.eval()
        try:
            network(torch.zeros(1, *shape).contiguous(memory_format=memory_format))
        except Exception:  # whatever a user's network does
            return False
    return True
