import logging
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils import checkpoint, config_file, distributed, onnx_file
from utils.config_file import assign
from utils.engine import Engine
from utils.errors import UserError
from utils.exported import ExportedNetwork
from utils.networks import take_channels
from utils.signature import signature_of
from utils.structure import resize
from utils.versions import versions
from utils.weights import load_weights, read_weights, torchvision_weights

LOADERS = ("data_loader", "valid_data_loader", "test_data_loader")


def start(config: Any, same_network: bool = False) -> tuple[Engine, Any]:
    """Begin a run: its folders, the log, the config as used, the machine, the seed. On all processes; the first writes.

    Returns the engine and the logger's Recorder.

    With --check the folders are temporary. `same_network` says that a new run goes on with the checkpoint's network, so
    that pictures have to be normalised as they were.
    """
    from logger import Recorder, setup_logging  # what a faulty config is answered without

    settings = config["trainer"]
    if config.arguments.check:
        # kept on the config, which outlives the run: the folder goes when it does
        config.temporary = tempfile.TemporaryDirectory(prefix="kata-check-")
        settings |= {"save_dir": config.temporary.name, "tensorboard": False}
    if config.continued or same_network:
        keep_normalisation(config, checkpoint.load(config.resume)["input"])
    engine = _engine(config)
    enlarge_batches(config, distributed.world_size())
    log_dir, first = config.log_dir, distributed.is_first()
    setup_logging(log_dir if first else None, settings.get("verbosity", 2))
    if first:
        config_file.write(config.config | {"versions": versions()}, config.save_dir / "config.json")
    else:
        logging.disable(logging.CRITICAL)  # the first says it
    _begin(engine, config)
    return engine, Recorder(log_dir, settings.get("tensorboard", True), keep=first)


def enlarge_batches(config: Any, processes: int) -> None:
    """Where engine.batch_size is "process", make the config's batches, and with engine.scale_lr its learning rates, that
    many times larger; the config as used then says what they are, on any number of processes.

    Larger batches, larger rate: Goyal et al., arXiv:1706.02677.
    """
    section = config.get("engine", {})
    each, scale_lr = section.pop("batch_size", "global") == "process", section.pop("scale_lr", False)
    if not each:
        return
    if config.continued:
        config.get_logger("engine").warning("engine.batch_size: a run goes on with the batches that it began with")
        return
    for loader in LOADERS:
        if config.get(loader) is not None:
            size = _argument(config, loader, "batch_size")
            assign(config.config, [loader, "args", "batch_size"], size * processes)
    if scale_lr:
        assign(config.config, ["optimizer", "args", "lr"], _argument(config, "optimizer", "lr") * processes)
        for rule in config.option("optimizer", "param_groups", []):
            rule |= {"lr": rule["lr"] * processes} if "lr" in rule else {}


def _argument(config: Any, section: str, name: str) -> Any:
    bound = config.init_ftn(section)
    return bound.keywords.get(name, signature_of(bound.func).parameters[name].default)


def start_test(config: Any) -> tuple[Engine, Any]:
    """Prepare a test: the machine, and the loader of the split that --split names. Makes no run folder."""
    from logger import setup_logging

    setup_logging()
    trained = trained_state(config)
    keep_normalisation(config, trained["input"])
    loader = loader_of(config, config.arguments.split)
    known, found = trained["classes"], loader.classes
    if known is not None and found is not None and len(known) != len(found):
        raise UserError(
            f"{config.resume} tells {len(known)} classes apart ({_shortened(known)}), the data have {len(found)} "
            f"({_shortened(found)})"
        )
    return machine(config), loader


def trained_state(config: Any) -> dict:
    """What the checkpoint or exported file says that `config.resume` names.

    Of a file made elsewhere, without metadata, classes and input are taken from the config's data.
    """
    state = checkpoint.load(config.resume)
    if state["input"] is None:
        loader = config.init_obj("data_loader")
        state |= {"classes": loader.classes, "input": loader.input}
    return state


def loader_of(config: Any, split: str) -> Any:
    """The loader of "test", "val" or "train" samples, neither shuffled nor augmented. Raises UserError."""
    own = {"test": "test_data_loader", "val": "valid_data_loader"}.get(split)
    loader = build_loader(config, own, split) if own else None
    if loader is None:
        training = config.init_obj("data_loader")
        loader = training.split_validation() if split == "val" else training.of_subset(split)
    if loader is None:
        raise UserError("the configuration sets no validation data apart: set data_loader.args.validation_split")
    return loader


def machine(config: Any, **changes: Any) -> Engine:
    """Where and, but for `changes`, how the command line and the config want to compute; what differs is said."""
    engine = _engine(config, compile=None, **changes)  # one pass over some data is done before a compiler is
    _begin(engine, config)
    return engine


def build_loader(config: Any, section: str, subset: str) -> Any:
    """The loader that `section` names, for `subset` where the config does not say which; None without the section."""
    loader = config.init_obj(section, subset=subset)
    asked = config.option(section, "args", {}).get("subset", subset)
    # A loader whose constructor has no such keyword was made for training.
    return loader if loader is None or loader.subset == asked else loader.of_subset(asked)


def check_data(config: Any, *loaders: Any) -> None:
    """Say what is to be known of the data before training. Raises UserError where they will not do."""
    logger, there = config.get_logger("data"), [loader for loader in loaders if loader is not None]
    with distributed.first_on_each_machine():  # what is to be fetched or cached is so by one
        for line in dict.fromkeys(line for loader in there for line in loader.check()):
            logger.info(line)
        for loader in there:
            len(loader)


def class_weights(data_loader: Any) -> dict[str, Tensor]:
    """The loss's `weight`, where the loader wants rare classes to count more."""
    return {} if data_loader.class_weights is None else {"weight": torch.tensor(data_loader.class_weights)}


def keep_normalisation(config: Any, wanted: dict) -> None:
    """Let image loaders subtract and divide by what the checkpoint's "input" says, whatever the data at hand would give."""
    for section in LOADERS:
        if config.get(section) is None or wanted.get("mean") is None:
            continue
        if "normalize" in signature_of(config.init_ftn(section).func).parameters:
            assign(config.config, [section, "args", "normalize"], {key: wanted[key] for key in ("mean", "std")})


def _engine(config: Any, **changes: Any) -> Engine:
    settings = config.get("engine", {}) | changes
    return Engine(config.arguments.device, config.get("n_gpu", 1), config.get("seed", 0), settings)


def _begin(engine: Engine, config: Any) -> None:
    engine.seed_epoch(0)
    for note in engine.take_notes():
        config.get_logger("engine").warning(note)


def build_network(config: Any, classes: list[str] | None, shape: list[int]) -> nn.Module:
    """The network that arch names, fitted to the data: number of classes, channels and size of the pictures.

    Each is passed where the network takes it and the config is silent, so that a checkpoint, which keeps classes and
    shape, gives the same network again; where that one was pruned, so is this.
    """
    offered: dict[str, Any] = {} if classes is None else {"num_classes": len(classes)}
    if len(shape) == 3:
        channels, height, width = shape
        offered |= {"in_channels": channels, "input_size": (height, width), "init_weights": True}
        offered |= {"image_size": height} if height == width else {}
    model = config.init_obj("arch", **offered)
    if len(shape) == 3:
        take_channels(model, shape[0])
    if config.resume is not None:
        resize(model, checkpoint.load(config.resume).get("structure"))
    return model


def build_trained_network(config: Any) -> nn.Module:
    """The network of the checkpoint that `config.resume` names, ready to evaluate: the averaged one, where there is one.

    An exported file stands for itself. Raises CheckpointError where the weights do not fit the network.
    """
    state = trained_state(config)
    if config.resume.suffix == onnx_file.SUFFIX:
        load = partial(onnx_file.runner, config.resume, config.arguments.threads)
        name, parts = str(config.resume), (state["input"], state["preprocessed"], state["softmax"], state["classes"])
        return ExportedNetwork(name, load, *parts).eval()
    if not config.continued:  # another config says where the data are; the network stays the checkpoint's
        config.config["arch"] = state["config"]["arch"]
    model = build_network(config, state["classes"], state["input"]["shape"])
    load_weights(model, read_weights(config.resume), str(config.resume), new_head=False)
    return model.eval()


def _shortened(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])}, ... {names[-1]}"


def load_pretrained(config: Any, model: nn.Module, new_head: bool = True) -> None:
    """Start a new run from the weights of `-r PATH`, or of arch.weights.

    A head of another size starts fresh, unless `new_head` forbids it.
    """
    name = config.option("arch", "weights")
    if config.continued or (config.resume is None and name is None):
        return
    if config.resume is not None:
        origin, weights = str(config.resume), read_weights(config.resume)
    elif Path(name).exists() or Path(name).suffix in (".pth", ".pt"):
        origin, weights = name, read_weights(Path(name))
    else:
        origin, weights = f"{name} of torchvision", torchvision_weights(config["arch"]["type"], name)
    fresh = load_weights(model, weights, origin, new_head)
    said = f"; starting fresh, as its size differs: {', '.join(fresh)}" if fresh else ""
    config.get_logger("start").info(f"weights of {origin}{said}")
