"""A checked configuration, which builds what it names."""

import argparse
import copy
import functools
import logging
import os
import shutil
from collections.abc import Container, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from utils.config.config_file import assign, split_target
from utils.config.lookup import did_you_mean, metric_name
from utils.config.sections import ALIASES, role_of, sources_of
from utils.config.signature import Signature, get_signature
from utils.config.trust import Trust
from utils.errors import ConfigError, RunError, UserError, in_words
from utils.run_folder import log_dir_for, new_run_dir

SAVE_DIR = "saved/"
RUN = "run folder"  # key under which restarted processes find the run they had begun


class ConfigParser:
    """A checked configuration. It does not change: what the command line says is in it already.

    Args:
        config: the whole configuration
        resume: checkpoint to start from
        modification: changes to it, "optimizer;args;lr" -> value; None changes nothing
        run_id: name of the run's folder; the date and time by default
        origin: what to call it in messages, the file's name
        continued: True to resume the run that wrote `resume`, False to start a new one from it
        trial: True if nothing is kept; save_dir is then a new folder even if a run is resumed
        warnings: to be logged once there is a log
        trust: dotted paths that this config, and those of other checkpoints, may name; by default
            those in it

    Raises ConfigError, which lists every error.
    """

    def __init__(
        self,
        config: dict,
        resume: Path | None = None,
        modification: dict[str, object] | None = None,
        run_id: str | None = None,
        *,
        origin: str = "the config",
        continued: bool = False,
        trial: bool = False,
        warnings: Iterable[str] = (),
        trust: Container[str] | None = None,
    ):
        from utils.config.validate import find_errors  # lazily: --help must not load pydantic

        config = {section: value for section, value in config.items() if value is not None}
        if modification:
            config = copy.deepcopy(config)
            for target, value in modification.items():
                if value is not None:
                    assign(config, split_target(target), value)
        for (section, old), new in ALIASES.items():
            if isinstance(config.get(section), dict) and old in config[section]:
                values = {key: value for key, value in config[section].items() if key != old}
                config[section] = {new: config[section][old]} | values
        self.config, self.origin, self.warnings = config, origin, list(warnings)
        self.trust = Trust(config) if trust is None else trust
        self.sources = sources_of(config, self.trust)
        self.run_id = run_id
        self.resume, self.continued, self.trial = resume, continued, trial
        self.command: str | None = None  # that the run was started by
        if errors := find_errors(config, self.trust):
            error = ConfigError(origin, errors)
            for warning in self.warnings:
                error.add_note(f"warning: {warning}")
            raise error

    @classmethod
    def from_args(
        cls, parser: argparse.ArgumentParser, options: Iterable[tuple] = ()
    ) -> "ConfigParser":
        """The configuration that pytorch-template's scripts ask for: `parser` knows -c, -r and -d,
        and `options` are its CustomArgs. Scripts of this project use `parse_config.command`.
        """
        from utils.config.resolve import Script, add_options, resolve

        options = add_options(parser, options)
        parser.set_defaults(set=[], trust=False, config_before_restart=None)
        arguments = parser.parse_args()
        if getattr(arguments, "device", None) is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = arguments.device
        return resolve(arguments, options, Script())

    def __getitem__(self, section: str) -> Any:
        return self.config[section]

    def get(self, section: str, default: object = None) -> Any:
        """The section, or `default` if the config has none."""
        return self.config.get(section, default)

    def option(self, section: str, key: str, default: object = None) -> Any:
        """A key beside a section's "type" and "args"."""
        spec = self.config.get(section)
        value = spec.get(key) if isinstance(spec, dict) else None
        return default if value is None else value

    def signature(self, section: str) -> Signature:
        """The keyword arguments of what `section` names."""
        source = self.sources[section]
        return source.signature(source.find(source.split(self.config[section])[0]))

    def own_sections(self, role: str) -> list[str]:
        """The sections, besides `role` itself, that say they have this role."""
        named = self.config.items()
        return [name for name, spec in named if name != role and role_of(name, spec) == role]

    def argument(self, section: str, key: str) -> Any:
        """An argument as it is used: the config's, or the default."""
        default = self.signature(section).parameters[key].default
        return self.init_ftn(section).keywords.get(key, default)

    def replace(self, **sections: object) -> "ConfigParser":
        """The same configuration with other sections, checked again."""
        config = copy.deepcopy(self.config) | sections
        kept = ("resume", "run_id", "origin", "continued", "trial", "warnings", "trust")
        return ConfigParser(config, **{name: getattr(self, name) for name in kept})

    def from_checkpoint(self, place: Path) -> "ConfigParser":
        """The configuration that tests another run, checkpoint or file. Raises UserError."""
        from utils import checkpoint
        from utils.config.resolve import adopt_network

        resume, state = checkpoint.find(place, best=True)
        config, continued = state["config"] or self.config, state["config"] is not None
        origin = f"the config in {resume}"
        parser = ConfigParser(config, resume, origin=origin, continued=continued, trust=self.trust)
        return adopt_network(parser, state)

    def init_obj(
        self, section: str, module: ModuleType | None = None, *args: object, **supplied: object
    ) -> Any:
        """Build what `section` names; None if the config has no such section.

        `supplied` are the arguments that a config cannot hold (params=, optimizer=); those that are
        merely offered, like num_classes=, are passed if the callee takes them and the config is
        silent. A list of specs gives a dict, name -> object. With a `module` the name is looked up
        there and nowhere else, and called with `args` and `supplied` beside the config's arguments.
        """
        if module is not None:
            return self.init_ftn(section, module, *args, **supplied)()
        value = self.config.get(section)
        if self.sources[section].listed:
            return {metric_name(spec): self._build(section, spec, supplied) for spec in value or []}
        return None if value is None else self._build(section, value, supplied)

    def init_ftn(
        self, section: str, module: ModuleType | None = None, *args: object, **supplied: object
    ) -> functools.partial:
        """The class or function that `section` names, with its arguments bound; see `init_obj`."""
        if module is not None:
            spec = self.config[section]
            spec = {"type": spec} if isinstance(spec, str) else spec
            if (target := getattr(module, spec["type"], None)) is None:
                near = did_you_mean(spec["type"], vars(module))
                raise UserError(f'{section}: {module.__name__} has no "{spec["type"]}"{near}')
            return functools.partial(target, *args, **spec.get("args", {}), **supplied)
        return self._bind(section, self.config[section], supplied)

    def get_logger(self, name: str, verbosity: int = 2) -> logging.Logger:
        """A logger that shows warnings only (0), a line per epoch (1) or everything (2)."""
        logger = logging.getLogger(name)
        logger.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[verbosity])
        return logger

    @functools.cached_property
    def save_dir(self) -> Path:
        """The run's folder, saved/models/<name>/<mmdd_HHMMSS>; a new run's is created here.

        The same on all processes.
        """
        from utils.engine import distributed

        def find_or_create() -> str:
            if self.continued and not self.trial:
                return str(self.resume.parent)
            root = Path(self["trainer"].get("save_dir", SAVE_DIR))
            return str(new_run_dir(root, self["name"], self.run_id))

        folder = Path(distributed.broadcast_once(RUN, find_or_create))
        if distributed.is_main():  # which has removed the folder if it failed before a restart
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def log_dir(self) -> Path:
        """saved/log/<name>/<mmdd_HHMMSS>, beside `save_dir`."""
        return log_dir_for(self.save_dir)

    def remove_empty_run(self) -> None:
        """Remove the folders of a new run that hold nothing but what is written at its start."""
        from utils import lock
        from utils.engine import distributed

        if "save_dir" not in vars(self) or self.continued or not distributed.is_main():
            return
        folders = self.save_dir, self.log_dir
        files = {path.name for folder in folders for path in folder.rglob("*") if path.is_file()}
        if files <= {"config.json", "run.json", "info.log", lock.NAME}:
            # this closes info.log: Windows removes no open file
            logging.basicConfig(force=True, handlers=[logging.NullHandler()])
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)

    def less_memory(self) -> str:
        """What to set if the memory is not enough, in words."""
        loader, trainer = (self.signature(name).parameters for name in ("data_loader", "trainer"))
        size = self.argument("data_loader", "batch_size") if "batch_size" in loader else 1
        if size == 1:
            return "a smaller network, smaller inputs or data_loader.args.num_workers=0 need less"
        advice = f"batches of {size} are too large: -s data_loader.args.batch_size={size // 2}"
        if "grad_accum_steps" in trainer and not self.own_sections("optimizer"):
            steps = 2 * self.argument("trainer", "grad_accum_steps")
            advice += f" trainer.grad_accum_steps={steps}"
        return f"{advice} takes about half"

    def _build(self, section: str, spec: str | dict, supplied: dict) -> Any:
        bound, source = self._bind(section, spec, supplied), self.sources[section]
        if not source.is_builder(bound.func):
            return bound
        try:
            return source.checked_result(bound(), bound.func)
        except (UserError, RunError, OSError):
            raise
        except Exception as error:
            what = f"{section}: {bound.func.__name__} could not be built from its arguments"
            raise UserError(f"{what}: {in_words(error)}") from error

    def _bind(self, section: str, spec: str | dict, supplied: dict) -> functools.partial:
        """What a spec names, with its arguments: the config's, coerced, and the supplied ones."""
        from utils.config.types import coerce, drop_nulls

        source = self.sources[section]
        name, args = source.split(spec)
        target = source.find(name)
        signature = source.signature(target)
        arguments = drop_nulls(args, signature, source.offered)
        for key, value in arguments.items():
            if key in source.nested:
                arguments[key] = self._build_nested(source.nested[key], value, supplied)
            elif key in signature.parameters:
                arguments[key] = coerce(value, signature.parameters[key].annotation)
        if "seed" in source.offered:
            supplied = {"seed": self.get("seed", 0), **supplied}
        accepted = {*get_signature(target).parameters}
        if signature.open:
            accepted |= {*source.given}
        if signature.open and "in_channels" in source.offered:
            accepted |= {"num_classes"}  # builders of networks (timm.create_model) all know it
        taken = {key: value for key, value in supplied.items() if key in accepted}
        return functools.partial(target, **(taken | arguments))

    def _build_nested(self, section: str, value: object, supplied: dict) -> object:
        """What a list of specs, or an object of such lists, names; a text stays as it is."""
        if isinstance(value, dict):
            return {k: self._build_nested(section, part, supplied) for k, part in value.items()}
        source = self.sources[section]
        supplied = {k: v for k, v in supplied.items() if k in source.given + source.offered}
        if isinstance(value, list):
            return [self._build(section, part, supplied) for part in value]
        return value
