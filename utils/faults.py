"""dict -> faults: everything that is wrong with a configuration, all at once. Builds nothing and reads no data."""

import collections
import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from utils.check import fit, odd_numbers
from utils.lookup import Source, did_you_mean
from utils.specs import metric_name, spec_args

TAKEN = ("loss", "lr", "seconds", "samples_per_second", "epoch", "step")  # logged besides the metrics


class Faults(list):
    """Faults found so far, each "path: what is wrong and what would be right".

    Args:
        config: the configuration
        sources: section -> where what it names is found
        plain: the sections that name nothing -> their type hints
        required: sections that must be there
    """

    def __init__(self, config: dict, sources: Mapping[str, Source], plain: Mapping[str, Any], required: Collection[str]):
        super().__init__(odd_numbers(config, ""))
        self.sources = sources
        self.extend(f"{section}: missing" for section in required if section not in config)
        for section, value in config.items():
            if section in plain:
                self._fit(section, value, plain[section])
            elif section == "metrics":
                self._metrics(value)
            elif section in sources and sources[section].inner:
                self.append(f"{section}: belongs into the arguments of another section, as data_loader.args.{section}")
            elif section in sources:
                self._spec(section, section, value)
            elif near := did_you_mean(section, (*sources, *plain, "extends"), cutoff=0.8):  # else it is the user's own
                self.append(f"{section}: unknown section{near}")
        self._name(config.get("name"))
        self._monitor(config)

    def _spec(self, section: str, path: str, spec: Any) -> None:
        """One "Name" or {"type": "Name", "args": {...}}."""
        source = self.sources[section]
        if isinstance(spec, dict) and source.default:
            spec = {"type": source.default, **spec}
        if not isinstance(spec, str) and not (isinstance(spec, dict) and isinstance(spec.get("type"), str)):
            self.append(f'{path}: should be a name or {{"type": "Name", "args": {{...}}}}')
            return
        name, args = spec_args(source, spec)
        if isinstance(spec, dict) and not source.default:
            keys = {"type": str, "args": dict, **source.keys}
            for key, value in spec.items():
                if key in source.keys and value is None:
                    continue  # as if it were not there
                if key in keys:
                    self._fit(f"{path}.{key}", value, keys[key])
                else:
                    self.append(f"{path}.{key}: unknown key{did_you_mean(key, keys) or '; arguments go into args'}")
        try:
            found = source.find(name)
        except LookupError as error:
            self.append(f"{path}{'' if isinstance(spec, str) else '.type'}: {error.args[0]}")
        else:
            if isinstance(args, dict):
                self._arguments(section, path if source.default else f"{path}.args", found, args)

    def _arguments(self, section: str, path: str, found: Callable, args: dict) -> None:
        source = self.sources[section]
        signature = source.signature(found)
        for key, value in args.items():
            if key in source.given:
                self.append(f"{path}.{key}: is supplied by the scripts, not by a config")
            elif key in signature.parameters:
                if key in source.nested:
                    self._nested(source.nested[key], f"{path}.{key}", value)
                    value = [] if isinstance(value, list) else value  # whether a list fits here; it holds no objects yet
                self._fit(f"{path}.{key}", value, signature.parameters[key].annotation)
            elif not signature.open:
                near = did_you_mean(key, signature.parameters)
                listing = f"; it takes {', '.join(signature.parameters) or 'no arguments'}"
                self.append(f'{path}.{key}: {found.__name__} takes no "{key}"{near or listing}')
        for key, parameter in signature.parameters.items():
            if parameter.default is parameter.empty and key not in args and key not in source.offered:
                self.append(f'{path}: {found.__name__} needs "{key}"')

    def _nested(self, section: str, path: str, value: Any) -> None:
        """A list of specs, or an object of such lists; what is neither names nothing."""
        for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
            if isinstance(value, list):
                self._spec(section, f"{path}.{key}", part)
                own = [name for name in self.sources[section].keys if isinstance(part, dict) and part.get(name) is not None]
                self.extend(f"{path}.{key}.{name}: is for the outermost alone, {section}.{name}" for name in own)
            else:
                self._nested(section, f"{path}.{key}", part)

    def _metrics(self, specs: Any) -> None:
        if not isinstance(specs, list):
            self.append('metrics: should be a list, for example ["accuracy"]')
            return
        count = len(self)
        for index, spec in enumerate(specs):
            self._spec("metrics", f"metrics.{index}", spec)
        if len(self) == count:
            names = collections.Counter(map(metric_name, specs))
            twice = [name for name, number in names.items() if number > 1]
            taken = [name for name in names if name in TAKEN or name.startswith("val_")]
            self.extend(f'metrics: "{name}" is what something else is called; give a "name" beside "type"' for name in taken)
            self.extend(f'metrics: several are called "{name}"; give each a "name" beside "type"' for name in twice)

    def _name(self, name: Any) -> None:
        if isinstance(name, str) and (not name.strip(" .") or len(name) > 100 or re.search(r'[\\/:*?"<>|\x00-\x1f]', name)):
            self.append(f'name: {json.dumps(name)[:110]} becomes a folder: 1 to 100 characters, none of \\ / : * ? " < > |')

    def _monitor(self, config: dict) -> None:
        """A misspelt name would otherwise show only after the first epoch."""
        trainer, metrics = config.get("trainer"), config.get("metrics", [])
        rule = trainer.get("monitor") if isinstance(trainer, dict) else None
        if not isinstance(rule, str) or rule == "off":
            return
        mode, _, watched = rule.partition(" ")
        if mode not in ("min", "max") or not watched:
            self.append(f'trainer.monitor: "{rule}" should be "off", "min NAME" or "max NAME", as in "max val_accuracy"')
            return
        named = [metric for metric in metrics if isinstance(metric, str | dict)] if isinstance(metrics, list) else []
        names = ["loss", *(str(metric_name(metric)) for metric in named)]
        names += [f"val_{name}" for name in names]
        # What is near none of them may be logged by the user's own _train_epoch.
        if watched not in names and (near := did_you_mean(watched, names)):
            self.append(f'trainer.monitor: nothing is called "{watched}"{near}')

    def _fit(self, path: str, value: Any, hint: Any) -> None:
        try:
            fit(value, hint)
        except ValueError as error:
            self.append(f"{path}: {error}")
