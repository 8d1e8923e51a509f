"""docs/config.schema.json: what editors complete and explain, made from the signatures that configs
are checked by.
"""

import inspect
import re
from collections.abc import Callable
from pathlib import Path

from utils.config.lookup import Source
from utils.config.sections import LOADERS, PLAIN, REQUIRED, SOURCES
from utils.config.types import json_schema
from utils.files import write_json

DESCRIPTIONS = {
    "$schema": "this schema, for editors",
    "name": "name of the run and its folder",
    "about": "a note to yourself",
    "seed": "determines all randomness",
    "n_gpu": "how many GPUs to use; 0 for the CPU",
    "versions": "what the run was made with; written by the run",
}


def build_schema() -> dict:
    """The JSON Schema of a configuration."""
    import torch

    properties = {
        key: json_schema(hint) | {"description": DESCRIPTIONS.get(key) or hint.__doc__}
        for key, hint in PLAIN.items()
    }
    properties["extends"] = {
        "description": "a configuration to build on, or several; paths are relative to this file",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    for section, source in SOURCES.items():
        if not source.inner:
            spec = _spec(source)
            properties[section] = {"type": "array", "items": spec} if source.listed else spec
    for section in LOADERS[1:]:
        properties[section] = {"$ref": "#/properties/data_loader"}
    version = ".".join(torch.__version__.split(".")[:2])
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": f"made by python parse_config.py, with torch {version}",
        "title": "A configuration",
        "type": "object",
        "properties": properties,
        "anyOf": [{"required": list(REQUIRED)}, {"required": ["extends"]}],
    }


def write_schema(path: Path) -> Path:
    """Write the schema; returns its path."""
    path.parent.mkdir(exist_ok=True)
    write_json(path, build_schema(), indent=1)
    return path


def descriptions(target: Callable) -> dict[str, str]:
    """Argument -> its text in the docstrings of a class and its bases ("name: text")."""
    found: dict[str, str] = {}
    entry = re.compile(r"^( +)(\w+)(?: \([^)\n]*\))?: +(.+(?:\n\1 +\S.*)*)", re.MULTILINE)
    for documented in reversed(target.__mro__) if inspect.isclass(target) else [target]:
        text = "" if documented is object else documented.__doc__ or ""
        for _, name, lines in entry.findall(text):
            found[name] = " ".join(re.sub(r":\w+:`|`", "", lines).split())
    return found


def known_names(source: Source) -> dict[str, Callable]:
    """The project's own classes and functions, and torch's; others take seconds to import."""
    library = source.library_names(*source.libraries) if _is_light(source) else []
    return source.select([*source.own_names(), *library])


def _is_light(source: Source) -> bool:
    return all(library.startswith("torch.") for library in source.libraries)


def _spec(source: Source) -> dict:
    """ "Name", or {"type": "Name", "args": {...}} with the arguments of each name that is known.

    With a default type, an object of that one's arguments.
    """
    if source.default:
        arguments = _arguments(source, source.find(source.default))
        kind = {"type": {"type": "string", "default": source.default}}
        return arguments | {"properties": kind | arguments["properties"]}
    known = known_names(source)
    any_other = {"pattern": r"\." if _is_light(source) else ""}
    names = {"type": "string", "anyOf": [{"enum": sorted(known)}, any_other]}
    keys = {"type": names, "args": {"type": "object"}}
    keys |= {key: json_schema(hint) for key, hint in source.keys.items()}
    cases = []
    for name, target in sorted(known.items()):
        condition = {"properties": {"type": {"const": name}}}
        arguments = {"properties": {"args": _arguments(source, target)}}
        cases.append({"if": condition, "then": arguments})
    closed = {"required": ["type"], "additionalProperties": False}
    return {"anyOf": [names, {"type": "object", "properties": keys, **closed, "allOf": cases}]}


def _arguments(source: Source, target: Callable) -> dict:
    signature, texts = source.signature(target), descriptions(target)
    properties = {}
    for name, parameter in signature.parameters.items():
        schema = json_schema(parameter.annotation)
        if name in source.nested and not schema:  # the hint names the finished objects
            schema = {"items": {"type": "object"}, "type": "array"}
        if isinstance(parameter.default, bool | int | float | str | None):
            schema = schema | {"default": parameter.default}
        properties[name] = schema | ({"description": texts[name]} if name in texts else {})
    return {"type": "object", "properties": properties, "additionalProperties": signature.open}
