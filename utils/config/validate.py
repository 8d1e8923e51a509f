"""All errors of a configuration, found at once. Builds nothing and reads no data."""

import collections
import dataclasses
import json
import re
from collections.abc import Callable, Container

from utils.config.lookup import Source, did_you_mean, metric_name
from utils.config.sections import PLAIN, REQUIRED, ROLES, SOURCES, role_of, sources_of
from utils.config.types import drop_nulls, find_infinite, find_type_errors
from utils.files import DEVICES

# logged beside the metrics
RESERVED = ("loss", "lr", "seconds", "samples_per_second", "epoch", "step")
SPEC = 'should be a name or {"type": "Name", "args": {...}}'
NOT_SECTIONS = {  # names that people expect -> what is right
    r"(train|val|test)\w*loader": '; training data is "data_loader", other data '
    '"valid_data_loader" and "test_data_loader"',
    "scheduler": '; did you mean "lr_scheduler"?',
    # keys without their section, as in -s epochs=3
    "epochs": '; did you mean "trainer.epochs"?',
    "early_stop": '; did you mean "trainer.early_stop"?',
    "monitor": '; did you mean "trainer.monitor"?',
    "save_dir": '; did you mean "trainer.save_dir"?',
    "lr|learning_rate": '; did you mean "optimizer.args.lr"?',
    "batch_size": '; did you mean "data_loader.args.batch_size"?',
    "num_workers": '; did you mean "data_loader.args.num_workers"?',
    "num_classes": '; did you mean "arch.args.num_classes"?',
}


def find_errors(config: dict, dotted: Container[str] = ()) -> list[str]:
    """The errors of a configuration, each "path: what is wrong and what would be right".

    `dotted` are the dotted paths that it may name.
    """
    errors, sources = find_infinite(config), sources_of(config, dotted)
    errors += [f"{section}: missing" for section in REQUIRED if section not in config]
    trainer = config.get("trainer")
    trainer_type = trainer.get("type") if isinstance(trainer, dict) else None
    # a task or a trainer of one's own may do without; the rehearsal tells
    if not config.keys() & {"loss", "task"} and trainer_type in (None, "Trainer"):
        errors.append("loss: missing")
    for section, value in config.items():
        if section in PLAIN:
            errors += find_type_errors(section, value, PLAIN[section])
        elif source := sources.get(section):
            if source.inner:
                place = f"data_loader.args.{section}"
                errors.append(f"{section}: belongs into another section, as {place}")
            else:
                errors += (_check_list if source.listed else _check_spec)(source, section, value)
        elif isinstance(value, dict) and {"role", "type"} <= value.keys():
            roles = ", ".join(ROLES)
            errors.append(f"{section}.role: {json.dumps(value['role'])} should be one of {roles}")
        elif near := _meant(section):  # any other is the user's own
            if isinstance(value, dict) and "type" in value and any(f'"{r}"' in near for r in ROLES):
                near += f'; or say what it is: "role": one of {", ".join(ROLES)}'
            errors.append(f"{section}: unknown section{near}")
    errors += _check_references(config)
    return errors + _check_name(config.get("name"))


def _check_references(config: dict) -> list[str]:
    """Whether the sections that another names are there."""
    errors = []
    for key, role in ("network", "arch"), ("optimizer", "optimizer"):
        known = [section for section, spec in config.items() if role_of(section, spec) == role]
        for section, spec in config.items():
            wanted = spec.get(key) if isinstance(spec, dict) and spec.get("role") else None
            if isinstance(wanted, str) and wanted not in known:
                near = did_you_mean(wanted, known)
                errors.append(f'{section}.{key}: no section "{wanted}" has the role {role}{near}')
    return errors


def _meant(name: str) -> str:
    """What an unknown section is probably meant to be, if it is not the user's own."""
    hints = (hint for pattern, hint in NOT_SECTIONS.items() if re.fullmatch(pattern, name))
    return did_you_mean(name, (*SOURCES, *PLAIN, "extends"), complete=False) or next(hints, "")


def _check_spec(source: Source, path: str, spec: object) -> list[str]:
    """One "Name" or {"type": "Name", "args": {...}}."""
    name, args = source.split(spec)
    if not isinstance(name, str) or not name:
        return [f"{path}: {SPEC}; for example -s {path}.type={source.example()}"]
    errors = []
    if isinstance(spec, dict) and not source.default:
        keys = {"type": str, "args": dict, **source.keys}
        for key, value in spec.items():
            if key not in keys:
                near = did_you_mean(key, keys) or "; arguments go into args"
                errors.append(f"{path}.{key}: unknown key{near}")
            elif value is not None or key not in source.keys:  # null: as if it were not there
                errors += find_type_errors(f"{path}.{key}", value, keys[key])
    try:
        target = source.find(name)
    except LookupError as error:
        errors.append(f"{path}{'' if isinstance(spec, str) else '.type'}: {error.args[0]}")
    else:
        place = path if source.default else f"{path}.args"
        errors += _check_arguments(source, place, target, args)
    return errors


def _check_arguments(source: Source, path: str, target: Callable, args: dict) -> list[str]:
    errors, signature = [], source.signature(target)
    args = drop_nulls(args, signature, source.offered)
    for key, value in args.items():
        if key in source.given:
            errors.append(f"{path}.{key}: is supplied by the scripts, not by a config")
        elif key in signature.parameters:
            if key in source.nested:
                errors += _check_nested(source, source.nested[key], f"{path}.{key}", value)
                value = [] if isinstance(value, list) else value  # its items were checked just now
            errors += find_type_errors(f"{path}.{key}", value, signature.parameters[key].annotation)
        elif not signature.open:
            near = did_you_mean(key, signature.parameters)
            listing = f"; it takes {', '.join(signature.parameters) or 'no arguments'}"
            errors.append(f'{path}.{key}: {target.__name__} takes no "{key}"{near or listing}')
    for key, parameter in signature.parameters.items():
        if parameter.default is parameter.empty and key not in args and key not in source.offered:
            errors.append(f'{path}: {target.__name__} needs "{key}"')
    return errors


def _check_nested(outer: Source, section: str, path: str, value: object) -> list[str]:
    """A list of specs, or an object of such lists; anything else names nothing."""
    errors, source = [], dataclasses.replace(SOURCES[section], dotted=outer.dotted)
    for key, part in value.items() if isinstance(value, dict) else ():
        errors += _check_nested(outer, section, f"{path}.{key}", part)
    for index, spec in enumerate(value) if isinstance(value, list) else ():
        errors += _check_spec(source, f"{path}.{index}", spec)
        keys = [key for key in source.keys if isinstance(spec, dict) and spec.get(key)]
        message = f"only the outermost may say {section}."
        errors += [f"{path}.{index}.{key}: {message}{key}" for key in keys]
    return errors


def _check_list(source: Source, section: str, specs: object) -> list[str]:
    if not isinstance(specs, list):
        return [f'{section}: should be a list, for example ["{source.example()}"]']
    errors = []
    for index, spec in enumerate(specs):
        errors += _check_spec(source, f"{section}.{index}", spec)
    if errors:
        return errors
    for name, count in collections.Counter(map(metric_name, specs)).items():
        if name in RESERVED or name.startswith("val_"):
            errors.append(f'{section}: "{name}" is a reserved name; give a "name" beside "type"')
        if count > 1:
            text = f'{section}: several are called "{name}"'
            named = '; give each a "name" beside "type"' if "name" in source.keys else ""
            errors.append(text + named)
    return errors


def _check_name(name: object) -> list[str]:
    if not isinstance(name, str):
        return []
    if DEVICES.fullmatch(name):
        return [f'name: "{name}" becomes a folder, and Windows reserves this name']
    if name.strip(" .") and len(name) <= 100 and not re.search(r'[\\/:*?"<>|\x00-\x1f]', name):
        return []
    shown = json.dumps(name, ensure_ascii=False)[:110]
    return [f'name: {shown} becomes a folder: 1 to 100 characters, none of \\ / : * ? " < > |']
