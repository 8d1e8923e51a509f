"""docs/config.schema.json: what editors complete and explain, from the same signatures that configs are checked by."""

import inspect
import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from utils.check import json_schema
from utils.lookup import Source

TITLES = {
    "$schema": "this schema, for editors",
    "name": "what the run is called; its folder's name",
    "about": "a note to yourself",
    "seed": "what all randomness follows from",
    "n_gpu": "how many GPUs to use; 0 for the CPU",
    "versions": "what the run was made with; written by the run",
    "inspection": "target: the class that must not be missed; max_escape: the share of it that may be, on validation data",
    "engine": "precision: tf32 where not given; compile: torch.compile's mode; channels_last: true where not given; "
    "deterministic: the same to the last bit on a GPU too, but slower",
    "heatmap": "method: torchcam's; layer: the one it looks at, found where not given",
}


def schema(sources: Mapping[str, Source], plain: Mapping[str, Any], required: Collection[str]) -> dict:
    """The JSON Schema of a configuration."""
    import torch

    properties = {key: json_schema(hint) | {"description": TITLES[key]} for key, hint in plain.items()}
    properties["extends"] = {
        "description": "a configuration to build on, or several; paths are relative to this file",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    for section, source in sources.items():
        if source.inner:
            continue
        spec = _flat_spec(source) if source.default else _spec(source)
        properties[section] = {"type": "array", "items": spec} if section == "metrics" else spec
    for section in ("valid_data_loader", "test_data_loader"):
        properties[section] = {"$ref": "#/properties/data_loader"}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": f"made by python parse_config.py, with torch {'.'.join(torch.__version__.split('.')[:2])}",
        "title": "A Kata configuration",
        "type": "object",
        "properties": properties,
        "anyOf": [{"required": list(required)}, {"required": ["extends"]}],
    }


def write_schema(sources: Mapping[str, Source], plain: Mapping[str, Any], required: Collection[str], path: Path) -> Path:
    """Write the schema; returns its path."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(schema(sources, plain, required), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def descriptions(found: Callable) -> dict[str, str]:
    """Argument name -> what its docstring says of it ("name: text" or "name (type): text"), base classes' too."""
    said: dict[str, str] = {}
    for place in reversed(found.__mro__) if inspect.isclass(found) else [found]:
        if place is not object:
            for name, text in re.findall(r"^ +(\w+)(?: \([^)\n]*\))?: +(.+)$", place.__doc__ or "", re.MULTILINE):
                said[name] = re.sub(r":\w+:`|`", "", text).strip()
    return said


def _spec(source: Source) -> dict:
    """ "Name", or {"type": "Name", "args": {...}} with the arguments of each name that is known."""
    cases_of = known(source)
    complete = all(library.startswith("torch.") for library in source.libraries)
    names = {"type": "string", "anyOf": [{"enum": sorted(cases_of)}, {"pattern": r"\." if complete else ""}]}
    keys = {"type": names, "args": {"type": "object"}} | {key: json_schema(hint) for key, hint in source.keys.items()}
    cases = [
        {"if": {"properties": {"type": {"const": name}}}, "then": {"properties": {"args": _arguments(source, found)}}}
        for name, found in sorted(cases_of.items())
    ]
    whole = {"type": "object", "properties": keys, "required": ["type"], "additionalProperties": False, "allOf": cases}
    return {"anyOf": [names, whole]}


def _flat_spec(source: Source) -> dict:
    found = source.find(source.default)
    arguments = _arguments(source, found)
    return arguments | {"properties": {"type": {"type": "string", "default": source.default}} | arguments["properties"]}


def known(source: Source) -> dict[str, Callable]:
    """Our own classes and functions that can be named, and those of torch. Other libraries' take seconds to import."""
    light = all(library.startswith("torch.") for library in source.libraries)
    return source.named([*source.own_names(), *(source.library_names() if light else ())])


def _arguments(source: Source, found: Callable) -> dict:
    signature, said = source.signature(found), descriptions(found)
    properties = {}
    for name, parameter in signature.parameters.items():
        one = json_schema(parameter.annotation)
        if name in source.nested and not one:  # the hint names the finished objects
            one = {"items": {"type": "object"}, "type": "array"}
        if isinstance(parameter.default, bool | int | float | str | None):
            one = one | {"default": parameter.default}
        properties[name] = one | ({"description": said[name]} if name in said else {})
    return {"type": "object", "properties": properties, "additionalProperties": signature.open}
