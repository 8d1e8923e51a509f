"""Where a checkpoint's classes and input meet the data: the one place for all scripts."""

import math
import unicodedata

from base import BaseDataLoader
from trainer.rehearsal import shorten
from utils.errors import UserError


def check_agreement(origin: str, state: dict, loader: BaseDataLoader) -> list[str]:
    """Compare the data with what the network of a checkpoint or file was trained on.

    Args:
        origin: what to call the checkpoint in messages
        state: its content; "classes" and "input" may be None or missing
        loader: of the data that this network will be used with

    Returns a line for what could not be compared, and for a difference that may be meant. Raises
    UserError if the classes are not the same in the same order, or if the input has other axes.
    """
    known, present, notes = state.get("classes"), loader.classes, []
    if (known is None) != (present is None):
        silent, names = ("the data", known) if present is None else (origin, present)
        notes.append(f"{silent} does not name its classes; they are taken to be {shorten(names)}")
    elif known is not None and _composed(known) != _composed(present):
        raise UserError(f"{_class_difference(origin, known, present)}. For other classes start a "
                        "new run from its weights: train.py -r PATH -c FILE")  # fmt: skip
    trained_on = state.get("input") or {}
    before, now = trained_on.get("shape"), loader.input["shape"]
    if before is not None and list(before) != now:
        sizes = f"{'x'.join(map(str, now))}, {origin} was trained on {'x'.join(map(str, before))}"
        if len(before) != len(now) or (len(now) == 3 and before[0] != now[0]):
            raise UserError(f"data_loader: a sample is {sizes}")
        notes.append(f"a sample is {sizes}")
    for name in ("mean", "std"):
        before, now = trained_on.get(name), loader.input[name]
        if before is not None and now is not None and not _close(before, now):
            notes.append(f"the data's {name} is {now}, that of {origin} {before}: the network sees "
                         "other values than in training")  # fmt: skip
    return notes


def rows_by_name(known: list[str] | None, present: list[str] | None) -> list[int | None] | None:
    """For each of the classes `present` the output of a network for the classes `known`, None for
    a new one; None if no class is known, or all are in the same order already.
    """
    if known is None or present is None:
        return None
    old, new = _composed(known), _composed(present)
    rows = [old.index(name) if name in old else None for name in new]
    return None if old == new or set(rows) == {None} else rows


def _class_difference(origin: str, known: list[str], present: list[str]) -> str:
    old, new = _composed(known), _composed(present)
    missing = [name for name in old if name not in new]
    added = [name for name in new if name not in old]
    changes = (missing, "missing"), (added, "new")
    parts = [f"{shorten(part)} {word}" for part, word in changes if part]
    difference = ", ".join(parts) or "the order differs"
    classes = f"the data's classes are {shorten(present)}, those of {origin} {shorten(known)}"
    return f"{classes}: {difference}"


def _composed(names: list[str]) -> list[str]:
    # macOS writes an umlaut as two characters in names of files
    return [unicodedata.normalize("NFC", name) for name in names]


def _close(one: list[float], two: list[float]) -> bool:
    pairs = zip(one, two, strict=False)
    return len(one) == len(two) and all(math.isclose(a, b, abs_tol=1e-4) for a, b in pairs)
