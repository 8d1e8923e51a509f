"""Text -> dict: JSON with comments, `extends`, overrides from the command line, and plain JSON
back.
"""

import json
import re
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import json5

from utils.config.sections import ALIASES, sources_of
from utils.errors import UserError
from utils.files import write_json

LARGEST = 500_000  # characters of a file
MOST_FILES = 100  # that a file extends, each counted as often as it is named


def read_layers(path: Path, seen: tuple[Path, ...] = ()) -> tuple[dict, list[dict]]:
    """A file merged over those it extends; and the content of each, in the order of merging.

    Paths are relative to the file that names them.
    """
    if "\0" in str(path):
        raise UserError(f"{str(path)!r} is not a file name")
    if path.resolve() in seen:
        raise UserError(f"{path} extends itself, by way of {' -> '.join(p.name for p in seen)}")
    config = _parse(path, extended=bool(seen))
    parents = config.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise UserError(f'{path}: "extends" should be a file name or a list of them')
    merged: dict = {}
    layers: list[dict] = []
    for parent in parents:
        if len(layers) + len(seen) >= MOST_FILES:
            raise UserError(f'{path}: "extends" leads to more than {MOST_FILES} files')
        below, layers_below = read_layers(path.parent / parent, (*seen, path.resolve()))
        merged, layers = merge(merged, below), layers + layers_below
    return merge(merged, config), [*layers, config]


def merge(base: dict, over: dict) -> dict:
    """`over` on top of `base`: objects merge key by key, null removes, all else replaces."""
    merged = dict(base)
    for key, value in over.items():
        if value is None and key in merged:
            del merged[key]
        elif isinstance(value, dict):
            below = merged.get(key)
            merged[key] = merge(below if isinstance(below, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def drop_foreign_arguments(
    config: dict, layers: list[dict], dotted: Container[str] = ()
) -> list[str]:
    """Drop arguments that were written for another type than the last, which does not take them.

    `config` is what the layers, each on top of those before it, result in; `dotted` are the dotted
    paths that it may name. Returns a line about each section that loses arguments.
    """
    notes = []
    for section, source in sources_of(config, dotted).items():
        kind, written_for = source.default, {}
        for layer in layers:
            spec = layer.get(section)
            kind = spec.get("type", kind) if isinstance(spec, dict) else spec or kind
            written_for |= dict.fromkeys(source.split(spec)[1], kind)
        _, arguments = source.split(config.get(section))
        inherited = [key for key in arguments if written_for.get(key, kind) not in (kind, None)]
        if not inherited or not isinstance(kind, str):
            continue
        try:
            target = source.find(kind)
        except LookupError:  # find_errors reports it
            continue
        signature = source.signature(target)
        # some networks of torchvision accept anything, and ignore it
        is_open = signature.open and not target.__module__.startswith("torchvision.")
        known = {*signature.parameters, *(old for part, old in ALIASES if part == section)}
        foreign = [key for key in inherited if key not in known and not is_open]
        for key in foreign:
            del (config[section] if source.default else config[section]["args"])[key]
        if foreign:
            place = section if source.default else f"{section}.args"
            notes.append(f"{place}: {kind} does not take {', '.join(foreign)}; dropped")
    return notes


def override(config: dict, assignment: str) -> None:
    """Carry out one `-s a.b.c=value`; a value that is not JSON is a text.

    `-s arch=Name` is short for `-s arch.type=Name`.
    """
    path, equals, text = assignment.partition("=")
    if path == "extends":
        raise UserError("-s extends: only a file can extend another; name another file with -c")
    if not equals or not path:
        raise UserError(f"-s {assignment}: write key=value, for example -s trainer.epochs=5")
    try:
        value = json5.loads(text)
    except (ValueError, RecursionError):
        value = text
    keys = path.split(".")
    source = sources_of(config).get(path)
    if source is not None and not source.listed and isinstance(value, str):
        keys.append("type")
    assign(config, keys, value)


def split_target(target: str | Iterable[str]) -> list[str]:
    """The keys that lead to a value: ("optimizer", "args", "lr"), or "optimizer;args;lr"."""
    return re.split("[;.]", target) if isinstance(target, str) else list(target)


def assign(config: dict, keys: list[str], value: object) -> None:
    """Set config[keys[0]][keys[1]]... = value; lists are reached by index.

    Missing objects are created, and a bare name becomes {"type": name}.
    """
    place: Any = config
    for depth, key in enumerate(keys):
        if isinstance(place, list):
            if not key.isdecimal() or int(key) >= len(place):
                where = ".".join(keys[:depth])
                last = len(place) - 1
                raise UserError(f'{where} is a list; "{key}" is not an index from 0 to {last}')
            key = int(key)
        if depth == len(keys) - 1:
            place[key] = value
            return
        below = place[key] if isinstance(place, list) else place.get(key)
        if isinstance(below, str):
            below = {"type": below}
        place[key] = below if isinstance(below, dict | list) else {}
        place = place[key]


def write(config: dict, path: Path) -> None:
    """Plain JSON, as any tool reads it."""
    write_json(path, config)


def _load(text: str) -> object:
    try:  # most files are plain JSON, which json reads a hundred times as fast
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except ValueError:
        # json5 leaves "\\ud83d\\udc36" as two halves of a character: json joins them, or fails
        return json.loads(json.dumps(json5.loads(text, allow_duplicate_keys=False)))


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _parse(path: Path, extended: bool) -> dict:
    if path.is_dir() or not path.exists():
        folder, where = (path, "in") if path.is_dir() else (path.parent, "beside")
        problem = f"{path} is a folder" if folder == path else f"there is no file {path}"
        names = ", ".join(sorted(file.name for file in folder.glob("*.json")))
        raise UserError(f"{problem}; {where} it: {names}" if names else problem)
    # -c may name a pipe
    if extended and not path.is_file():
        raise UserError(f"{path} is a device or a pipe, not a file")
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(LARGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if len(text) > LARGEST:
        raise UserError(f"{path} is not a configuration: it has more than {LARGEST:,} characters")
    try:
        config = _load(text)
        json.dumps(config, ensure_ascii=False).encode()
    except RecursionError:
        raise UserError(f"{path} is nested too deeply") from None
    except ValueError as error:
        # json5 says "<string>:2 Unexpected "}" at column 7"
        where = re.fullmatch(r"<string>:(\d+) (.*) at column (\d+)", str(error), re.DOTALL)
        reason = f"line {where[1]}, column {where[3]}: {where[2]}" if where else error
        raise UserError(f"{path} is not JSON: {reason}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} should hold one JSON object, {{...}}")
    return config
