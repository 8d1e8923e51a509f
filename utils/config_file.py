"""Text -> dict: JSON with comments, `extends`, overrides from the command line, and plain JSON back."""

import json
from pathlib import Path
from typing import Any

import json5

from utils.errors import UserError


def read(path: Path, seen: tuple[Path, ...] = ()) -> dict:
    """The configuration in `path`, merged over those it extends; paths there are relative to the file."""
    path = Path(path)
    if "\0" in str(path):
        raise UserError(f"{str(path)!r} is no file name")
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
    """`over` on top of `base`: objects are merged key by key, all else is replaced, null removes a key that is there."""
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
    """Carry out one `-s a.b.c=value`. A value that is no JSON is a text; lists are reached by index."""
    path, equals, text = assignment.partition("=")
    if path == "extends":
        raise UserError("-s extends: a file says what it extends; name another file with -c")
    if not equals or not path:
        raise UserError(f"-s {assignment}: write it as key=value, for example -s trainer.epochs=5")
    try:
        value = json5.loads(text)
    except (ValueError, RecursionError):
        value = text
    assign(config, path.split("."), value)


def assign(config: dict, keys: list[str], value: Any) -> None:
    """Set config[keys[0]][keys[1]]... = value; objects on the way are made, a bare name becomes {"type": name}."""
    place: Any = config
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(place, list):
            if not key.isdecimal() or int(key) >= len(place):
                where = ".".join(keys[:depth])
                raise UserError(f'{where} is a list of {len(place)}; "{key}" is none of 0 to {len(place) - 1}')
            key = int(key)
        if last:
            place[key] = value
        else:
            below = place[key] if isinstance(place, list) else place.get(key)
            if isinstance(below, str):
                below = {"type": below}
            place[key] = below = below if isinstance(below, dict | list) else {}
            place = below


def write(config: dict, path: Path) -> None:
    """Plain JSON, as any tool reads it."""
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _parse(path: Path) -> dict:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        beside = sorted(p.name for p in path.parent.glob("*.json")) if path.parent.is_dir() else []
        raise UserError(f"there is no file {path}" + (f"; beside it: {', '.join(beside)}" if beside else "")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    try:
        config = _joined(json5.loads(text, allow_duplicate_keys=False))
    except RecursionError:
        raise UserError(f"{path} is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {str(error).removeprefix('<string>:')}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} should hold one JSON object, {{...}}")
    return config


def _joined(value: Any) -> Any:
    """json5 leaves "\\ud83d\\udc36" as two halves of a character, which no file can hold: join them."""
    if isinstance(value, dict):
        return {_joined(key): _joined(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_joined(below) for below in value]
    return value.encode("utf-16", "surrogatepass").decode("utf-16") if isinstance(value, str) else value
