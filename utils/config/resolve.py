"""From a command line to the configuration as used: the one place where values are put together.

File or checkpoint, then the script's defaults, its flags, -s; then what must follow from the
checkpoint (normalisation, classes, for tests the network) and from the number of processes.
Afterwards nothing changes.
"""

import argparse
import copy
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from utils.config import config_file
from utils.config.config import SAVE_DIR, ConfigParser
from utils.config.sections import LOADERS
from utils.config.trust import Trust
from utils.engine import launch
from utils.errors import UserError
from utils.files import printable, shell_command

NEWEST = "the newest run"  # what -r without a path means


class CustomArgs(NamedTuple):
    """A flag that sets a key: CustomArgs(["--lr"], float, target=("optimizer", "args", "lr")).

    The target may also be written "optimizer;args;lr".
    """

    flags: list[str]
    type: type
    target: tuple[str, ...] | str

    @property
    def keys(self) -> list[str]:
        return config_file.split_target(self.target)


class Script(NamedTuple):
    """What tells the scripts apart.

    Attributes:
        trains: False for a script that uses a finished network: a run's best checkpoint, as it is
        keeps_network: a new run starts from the checkpoint's network, so its images are normalised
            alike
        defaults: section -> type, if the config does not say
        needs: a section that the config must have -> what one looks like
    """

    trains: bool = True
    keeps_network: bool = False
    defaults: dict[str, str] = {}  # noqa: RUF012 (never changed)
    needs: dict[str, str] = {}  # noqa: RUF012


def add_options(
    parser: argparse.ArgumentParser, options: Iterable[tuple[list[str], type, str]]
) -> list[CustomArgs]:
    """Give the parser a flag for each option; returns the options as CustomArgs."""
    options = [CustomArgs(*option) for option in options]
    for option in options:
        key = ".".join(option.keys)
        parser.add_argument(
            *option.flags, type=option.type, dest=key, metavar="VALUE", help=f"sets {key}"
        )
    return options


def resolve(
    arguments: argparse.Namespace,
    options: Iterable[CustomArgs],
    script: Script,
    trial_dir: str | None = None,
) -> ConfigParser:
    """The configuration that a command line asks for. Raises UserError.

    With `trial_dir` the run keeps its files there.
    """
    config, layers, origin, resume, state = _read(arguments, script)
    continued = state is not None and config is state["config"]
    for section, name in script.defaults.items():
        spec = config.setdefault(section, {})
        if isinstance(spec, dict):
            spec.setdefault("type", name)
    flags = [(option.keys, getattr(arguments, ".".join(option.keys))) for option in options]
    changes = _change(config, arguments.set, flags)
    for section, example in script.needs.items():
        if config.get(section) is None:
            raise UserError(f'{origin} has no section "{section}"; write "{section}": {example}')
    origin += " with what the command line sets" if changes else ""
    trust = Trust(changes, arguments.config or arguments.config_before_restart, arguments.trust)
    notes = config_file.drop_foreign_arguments(config, [*layers, changes], trust)
    kind = {"continued": continued, "trial": trial_dir is not None}
    parser = ConfigParser(config, resume, origin=origin, warnings=notes, trust=trust, **kind)
    if state is not None and (continued or script.keeps_network or not script.trains):
        parser = adopt_network(parser, state, arch=not script.trains)
    if script.trains:
        parser = multiply_batches(parser, launch.dist_info().world_size)
    if trial_dir is not None:
        nothing_kept = {"save_dir": trial_dir, "tensorboard": False}
        parser = parser.replace(trainer=parser["trainer"] | nothing_kept)
    return parser


def from_file(file: Path, assignments: Iterable[str] = ()) -> ConfigParser:
    """The configuration in a file, with what -s says. Raises UserError."""
    config, layers = config_file.read_layers(file)
    changes = _change(config, assignments)
    origin = f"{file} with what the command line sets" if changes else str(file)
    trust = Trust(changes, str(file))
    notes = config_file.drop_foreign_arguments(config, [*layers, changes], trust)
    return ConfigParser(config, origin=origin, warnings=notes, trust=trust)


def _change(
    config: dict, assignments: Iterable[str], flags: Iterable[tuple[list[str], object]] = ()
) -> dict:
    """Carry out flags (the keys and the value of each) and -s; returns what they say alone."""
    changes: dict = {}
    for place in (config, changes):
        for keys, value in flags:
            if value is not None:
                config_file.assign(place, keys, value)
        for assignment in assignments:
            config_file.override(place, assignment)
    return changes


def _read(
    arguments: argparse.Namespace, script: Script
) -> tuple[dict, list[dict], str, Path | None, dict | None]:
    """The configuration, its layers, where it comes from, the checkpoint of -r, its content."""
    if (not script.trains or script.needs) and not arguments.resume:
        newest = "" if script.trains and arguments.config else ", or -r for the newest run"
        raise UserError(f"which network? Pass -r PATH, a checkpoint or a run's folder{newest}")
    if not arguments.resume and not arguments.config:
        raise UserError("which configuration? Pass -c FILE, or -r PATH to resume a run")
    config = layers = resume = state = None
    if arguments.config:
        config, layers = config_file.read_layers(Path(arguments.config))
    if arguments.resume:
        from utils import checkpoint

        place = _place(arguments, config, script.trains)
        if arguments.resume == NEWEST and script.trains:
            config = None  # -r -c FILE resumes the newest run of that name, with its own config
        resume, state = checkpoint.find(place, best=not script.trains or config is not None)
        if script.trains and not state["state_dict"]:
            raise UserError(f"{resume} can only be tested; train from the checkpoint it came from")
    if config is not None:
        return config, layers, str(arguments.config), resume, state
    run = resume.parent.parent
    is_inside = not (resume.parent / "config.json").exists() and (run / "config.json").exists()
    if script.trains and is_inside:
        raise UserError(
            f"{resume} is a part of the run {run}: resume that with {shell_command('-r', run)}, "
            f"or start a new run with -c FILE {shell_command('-r', resume)}"
        )
    if state["config"] is None:
        raise UserError(f"{resume} carries no configuration: pass -c FILE, for data like its own")
    config = state["config"]
    return config, [copy.deepcopy(config)], f"the config in {resume}", resume, state


def describe_resumed(arguments: argparse.Namespace, script: Script) -> str:
    """What --info shows of the checkpoint that -r names. Raises UserError."""
    if not arguments.resume:
        raise UserError("--info: of which run? Also pass -r PATH")
    from utils import checkpoint
    from utils.info import describe

    config = config_file.read_layers(Path(arguments.config))[0] if arguments.config else None
    place = _place(arguments, config, to_train=False)
    return "\n".join(describe(*checkpoint.find(place, best=not script.trains)))


def _place(arguments: argparse.Namespace, config: dict | None, to_train: bool) -> Path:
    """The run or file that -r names; the newest run of the config's name without a path."""
    if arguments.resume != NEWEST:
        return Path(arguments.resume)
    from utils.checkpoint import newest_run
    from utils.engine import distributed

    name, trainer = None, {}
    if config is not None:
        config = copy.deepcopy(config)
        _change(config, arguments.set)  # which may name another run
        name, trainer = str(config.get("name")), config.get("trainer")
    save_dir = trainer.get("save_dir", SAVE_DIR) if isinstance(trainer, dict) else SAVE_DIR
    newest = newest_run(Path(str(save_dir)), name, to_train)
    return Path(distributed.broadcast(str(newest)))


def adopt_network(config: ConfigParser, state: dict, arch: bool = True) -> ConfigParser:
    """The configuration for using a checkpoint's network: the normalisation and range of its
    images, the names of its classes unless the configuration has its own, and its `arch`.
    """
    from utils.config.types import find_type_errors  # lazily: --help must not load pydantic

    sections, trained_on, adopted = {}, state["input"] or {}, {}
    if trained_on.get("mean") is not None:
        adopted["normalize"] = {key: trained_on[key] for key in ("mean", "std")}
    if trained_on:  # before there was a range, each file had its own
        adopted["pixel_range"] = trained_on.get("range", "file")
    if state.get("classes"):
        adopted["classes"] = [printable(name) for name in state["classes"]]
    unless_own = ("classes",) if trained_on.get("range") else ("classes", "pixel_range")
    for section in filter(config.get, LOADERS):
        parameters, own = config.signature(section).parameters, config.option(section, "args", {})
        arguments = {
            key: value
            for key, value in adopted.items()
            if key in parameters
            and (key not in unless_own or own.get(key) is None)
            # a loader of somebody's own may mean something else by the name
            and not find_type_errors(key, value, parameters[key].annotation)
        }
        if arguments:
            sections[section] = _with_arguments(config[section], **arguments)
    if arch and not config.continued and state["config"]:
        sections["arch"] = state["config"]["arch"]
    changed = {key: value for key, value in sections.items() if value != config.get(key)}
    return config.replace(**changed) if changed else config


def multiply_batches(config: ConfigParser, processes: int) -> ConfigParser:
    """With engine.batch_size "process" multiply batches, with engine.scale_lr learning rates.

    The configuration as used then says what they are, on any number of processes. Larger batches,
    larger rate: Goyal et al., arXiv:1706.02677.
    """
    settings = dict(config.get("engine", {}))
    per_process = settings.pop("batch_size", "global") == "process"
    scale_lr = settings.pop("scale_lr", False)
    if settings == config.get("engine", {}):
        return config
    sections = {"engine": settings}
    if per_process and not config.continued:
        for section in filter(config.get, LOADERS):
            size = config.argument(section, "batch_size") * processes
            sections[section] = _with_arguments(config[section], batch_size=size)
        if scale_lr:
            rate = config.argument("optimizer", "lr") * processes
            sections["optimizer"] = _with_arguments(config["optimizer"], lr=rate)
            if rules := config.option("optimizer", "param_groups"):
                rules = [r | {"lr": r["lr"] * processes} if "lr" in r else r for r in rules]
                sections["optimizer"]["param_groups"] = rules
    elif per_process:
        config.warnings.append("engine.batch_size: ignored on resume, as it is fixed for a run")
    return config.replace(**sections)


def _with_arguments(spec: str | dict, **arguments: object) -> dict:
    spec = {"type": spec} if isinstance(spec, str) else spec
    return spec | {"args": spec.get("args", {}) | arguments}
