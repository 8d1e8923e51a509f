"""Command line + JSON -> one checked configuration, which builds what it names.

Three steps that know nothing of one another: text -> dict (utils/config_file.py), dict -> faults
(utils/faults.py), dict -> objects (`ConfigParser.init_obj`). To add a class that a config can name, write it in
the section's folder; the keyword arguments of its constructor are its keys.
"""

import argparse
import copy
import functools
import inspect
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from utils import command_line, config_file
from utils.command_line import NEWEST, RUN, CustomArgs
from utils.errors import ConfigError, RunError, UserError
from utils.lookup import ROOT
from utils.sections import ALIASES, PLAIN, REQUIRED, SOURCES
from utils.specs import metric_name, spec_args

SAVE_DIR = "saved/"


class ConfigParser:
    """A checked configuration.

    Args:
        config: the whole configuration, as read
        origin: what to call it in messages, the file's name
        resume: checkpoint to start from
        continued: True if the run that wrote `resume` goes on, False if a new one starts from its weights
        arguments: the parsed command line

    Raises ConfigError, which lists every fault.
    """

    def __init__(
        self,
        config: dict,
        origin: str = "the config",
        resume: Path | None = None,
        continued: bool = False,
        arguments: argparse.Namespace | None = None,
    ):
        from utils.faults import Faults  # pydantic, which --help can do without

        config = {section: value for section, value in config.items() if value is not None}
        for (section, old), new in ALIASES.items():
            if isinstance(config.get(section), dict) and old in config[section]:
                config[section].setdefault(new, config[section].pop(old))
        if faults := Faults(config, SOURCES, PLAIN, REQUIRED):
            raise ConfigError(origin, faults)
        self.config = config
        self.resume = resume
        self.continued = continued
        self.arguments = arguments or argparse.Namespace(device=None, check=False, verbose=False)

    def __getitem__(self, section: str) -> Any:
        return self.config[section]

    def get(self, section: str, default: Any = None) -> Any:
        """The section, or `default` where the config has none."""
        return self.config.get(section, default)

    def init_obj(self, section: str, **given: Any) -> Any:
        """Build what `section` names; None where the config has no such section.

        `given` are the arguments a config cannot hold (params=, optimizer=); those that are merely offered,
        like num_classes=, are passed where the callee takes them and the config is silent. A list of specs
        gives a dict, name -> object.
        """
        value = self.config.get(section)
        if section == "metrics":
            return {metric_name(spec): self._build(section, spec, given) for spec in value or []}
        return None if value is None else self._build(section, value, given)

    def option(self, section: str, key: str, default: Any = None) -> Any:
        """A key that stands beside a section's "type" and "args"."""
        spec = self.config.get(section)
        value = spec.get(key) if isinstance(spec, dict) else None
        return default if value is None else value

    def of(self, place: Path) -> "ConfigParser":
        """The configuration of another run, checkpoint or exported file, under this command line. Raises UserError."""
        from utils import checkpoint

        resume, state = checkpoint.find(place, best=True)
        config = state["config"] or self.config
        if "exporter" in self.config:
            config = config | {"exporter": self.config["exporter"]}
        return ConfigParser(config, f"the config in {resume}", resume, state["config"] is not None, self.arguments)

    def init_ftn(self, section: str, **given: Any) -> Callable:
        """The class or function that `section` names, with its arguments bound, to be called later."""
        found, arguments = self._resolve(section, self.config[section], given)
        return functools.partial(found, **arguments)

    def get_logger(self, name: str, verbosity: int = 2):
        """A logger that shows warnings only (0), a line per epoch (1) or all there is (2)."""
        import logging

        logger = logging.getLogger(name)
        logger.setLevel({0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}[verbosity])
        return logger

    @functools.cached_property
    def save_dir(self) -> Path:
        """saved/models/<name>/<mmdd_HHMMSS>: the continued run's own, else a new one, made at the first call.

        The same on all processes.
        """
        from utils import checkpoint, distributed

        def own() -> str:
            if self.continued and not self.arguments.check:
                return str(self.resume.parent)
            return str(checkpoint.new_run_dir(Path(self["trainer"].get("save_dir", SAVE_DIR)), self["name"]))

        return Path(distributed.once(RUN, own))

    @property
    def log_dir(self) -> Path:
        """saved/log/<name>/<mmdd_HHMMSS>, beside `save_dir`."""
        from utils.checkpoint import log_dir_of

        return log_dir_of(self.save_dir)

    def _build(self, section: str, spec: Any, given: dict) -> Any:
        found, arguments = self._resolve(section, spec, given)
        source = SOURCES[section]
        if source.functional and not inspect.isclass(found):
            return functools.partial(found, **arguments)
        try:
            return source.checked_result(found(**arguments), found)
        except (UserError, RunError, OSError):
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"{section}: {found.__name__} could not be built from its arguments: "
                f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno}; "
                "--verbose shows the traceback)"
            ) from error

    def _resolve(self, section: str, spec: Any, given: dict) -> tuple[Callable, dict]:
        """The thing a spec names, and all its arguments: the config's as their hints want them, and the given."""
        from utils.check import fit

        source = SOURCES[section]
        name, args = spec_args(source, spec)
        found = source.find(name)
        signature = source.signature(found)
        hints = {k: p.annotation for k, p in signature.parameters.items()}
        arguments = {k: v if k in source.nested else fit(v, hints.get(k, Any)) for k, v in args.items()}
        for key in source.nested.keys() & arguments.keys():
            arguments[key] = self._build_nested(source.nested[key], arguments[key], given)
        given = {"seed": self.get("seed", 0), **given} if "seed" in source.offered else given
        # Of a builder that takes anything (timm.create_model) only the one name is sure that all agree on.
        takes = {*signature.parameters, *source.given, *(["num_classes"] if signature.open else [])}
        return found, {k: v for k, v in given.items() if k in takes} | arguments

    def _build_nested(self, section: str, value: Any, given: dict) -> Any:
        """What a list of specs, or an object of such lists, names; a preset's name stays what it is."""
        if isinstance(value, dict):
            return {key: self._build_nested(section, part, given) for key, part in value.items()}
        given = {k: v for k, v in given.items() if k in SOURCES[section].given + SOURCES[section].offered}
        return [self._build(section, part, given) for part in value] if isinstance(value, list) else value


def command(description: str, options: Iterable[CustomArgs] = (), add_arguments: Callable | None = None) -> Callable:
    """Makes of `main(config)` a command: `main(argv=None)` reads the command line and returns the exit code.

    `options` are flags that set keys of the config, `add_arguments(parser)` adds the script's own, which
    `config.arguments` then holds.
    """
    return functools.partial(command_line.command, from_arguments, description, options, add_arguments)


def from_arguments(arguments: argparse.Namespace, options: Iterable[CustomArgs]) -> ConfigParser:
    """The configuration a command line asks for. Raises UserError."""
    resume, config, origin, continued = None, None, str(arguments.config), False
    testing = getattr(arguments, "best", False)
    if getattr(arguments, "compare", None):
        arguments.resume = arguments.resume or arguments.compare[0]
    pruning = getattr(arguments, "needs", None) == "pruner"
    if (testing or pruning) and not arguments.resume:
        newest = "" if pruning and arguments.config else ", or -r for the newest run"
        raise UserError(f"which network? Say -r PATH, a checkpoint or a run's folder{newest}")
    if arguments.config:
        config = config_file.read(Path(arguments.config))
    if arguments.resume:
        from utils import checkpoint

        place = _newest_run(config, arguments.set) if arguments.resume == NEWEST else Path(arguments.resume)
        if arguments.resume == NEWEST and not testing:
            config = None  # -r -c FILE goes on with the newest run of that name, by its own configuration
        resume, state = checkpoint.find(place, best=testing or config is not None)
        if not testing and not state["state_dict"]:
            raise UserError(f"{resume} is for testing only: training goes on with the checkpoint it was made from")
        if config is None:
            if not testing and resume.parent.name == "prune" and (resume.parent.parent / "prune").exists():
                run = resume.parent.parent
                raise UserError(
                    f"{resume} is a step of {run}: go on with -r {run}, or begin a new run with -c FILE -r {resume}"
                )
            config, origin, continued = state["config"], f"the config in {resume}", True
            if config is None:
                raise UserError(
                    f"{resume} was made elsewhere and carries no configuration: say -c FILE, for data like its own"
                )
    elif config is None:
        raise UserError("which configuration? Say -c FILE, for example -c config.json, or -r PATH for a run there is")
    for section, name in getattr(arguments, "defaults", {}).items():
        spec = config.setdefault(section, {})
        if isinstance(spec, dict):
            spec.setdefault("type", name)
    if pruning and config.get("pruner") is None:
        raise UserError(
            f'{origin} has no section "pruner" ({{"type": "MagnitudePruner", "args": {{"channel_sparsity": 0.5}}}}); '
            "prune.py -c FILE -r PATH begins a pruning run"
        )
    for option in options:
        value = getattr(arguments, ".".join(option.target))
        if value is not None:
            config_file.assign(config, list(option.target), value)
    for assignment in arguments.set:
        config_file.override(config, assignment)
    return ConfigParser(config, origin, resume, continued, arguments)


def _newest_run(config: dict | None, assignments: Iterable[str]) -> Path:
    from utils import distributed
    from utils.checkpoint import newest_run

    config = copy.deepcopy(config)
    for assignment in assignments if config else ():  # which may name another run
        config_file.override(config, assignment)
    trainer = (config or {}).get("trainer", {})
    save_dir = trainer.get("save_dir", SAVE_DIR) if isinstance(trainer, dict) else SAVE_DIR
    newest = newest_run(Path(str(save_dir)), None if config is None else str(config.get("name")))
    return Path(distributed.from_first(str(newest)))


if __name__ == "__main__":
    from utils.schema import write_schema

    print(f"written: {write_schema(SOURCES, PLAIN, REQUIRED, ROOT / 'docs' / 'config.schema.json')}")
