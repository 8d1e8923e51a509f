"""Text -> dict: JSON with comments, `extends`, overrides from the command line, and plain JSON
back.
"""

import json
from pathlib import Path
from typing import Any

import json5

from utils.errors import UserError


def read(path: Path, seen: tuple[Path, ...] = ()) -> dict:
    """The configuration in `path`, merged over those it extends (paths relative to the file)."""
    path = Path(path)
    if "\0" in str(path):
        raise UserError(f"{str(path)!r} is not a file name")
    if path.resolve() in seen:
        raise UserError(f"{path} extends itself, by way of {' -> '.join(p.name for p in seen)}")
    config = _parse(path)
    parents = config.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise UserError(f'{path}: "extends" should be a file name or a list of them')
    merged: dict = {}
    for parent in parents:
        merged = merge(merged, read(path.parent / parent, (*seen, path.resolve())))
    return merge(merged, config)


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


def override(config: dict, assignment: str) -> None:
    """Carry out one `-s a.b.c=value`; a value that is not JSON is a text."""
    path, equals, text = assignment.partition("=")
    if path == "extends":
        raise UserError("-s extends: only a file can extend another; name another file with -c")
    if not equals or not path:
        raise UserError(f"-s {assignment}: write key=value, for example -s trainer.epochs=5")
    try:
        value = json5.loads(text)
    except (ValueError, RecursionError):
        value = text
    assign(config, path.split("."), value)


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
    text = json.dumps(config, indent=2, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")


def _parse(path: Path) -> dict:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        siblings = sorted(p.name for p in path.parent.glob("*.json"))
        hint = f"; beside it: {', '.join(siblings)}" if siblings else ""
        raise UserError(f"there is no file {path}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    try:
        # json5 leaves "\\ud83d\\udc36" as two halves of a character: json joins them, or fails
        config = json.loads(json.dumps(json5.loads(text, allow_duplicate_keys=False)))
        json.dumps(config, ensure_ascii=False).encode()
    except RecursionError:
        raise UserError(f"{path} is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {str(error).removeprefix('<string>:')}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} should hold one JSON object, {{...}}")
    return config
