"""What --info shows: what made a checkpoint, in lines for the screen."""

from collections.abc import Iterator
from pathlib import Path

from utils.files import printable
from utils.origin import origin

RECORD = ("digest", "data", "seed")  # of a checkpoint's origin


def describe(path: Path, state: dict) -> list[str]:
    """The lines about a checkpoint, or a file in its place, that `utils.checkpoint.find` gave."""
    return [f"{name:<12} {printable(str(value))}" for name, value in _entries(path, state)]


def _entries(path: Path, state: dict) -> Iterator[tuple[str, object]]:
    config, trainer, record = state["config"] or {}, state.get("trainer"), origin(state)
    yield "file", path
    yield "name", config.get("name")
    yield "network", state["arch"]
    done, total = state["epoch"], config.get("trainer")
    if trainer and trainer["step"]:
        done = f"{done - 1}, and {trainer['step']} batches"
    total = total.get("epochs") if isinstance(total, dict) else None
    yield "epochs", f"{done} of {total}" if total else done
    if trainer and trainer["monitor"]["best"] is not None:
        monitor = trainer["monitor"]
        yield "best", f"{monitor['rule']}: {monitor['best']:.6g} in epoch {monitor['best_epoch']}"
    yield from _record(record | {"config": config})
    if judged := state.get("judged"):
        yield "int8", _in_words(state["int8"] | judged) if "int8" in state else _in_words(judged)
    if "checkpoint" in record:
        yield "made from", record["checkpoint"]
    yield from _shown("versions", record["versions"])
    for session in state.get("sessions", []):
        yield f"epoch {session.get('epoch')}", session.get("command")
        yield from _shown("", {k: v for k, v in session.items() if k not in ("epoch", "command")})
    while record := record.get("made_from"):
        name = (record.get("config") or {}).get("name")
        yield "started from", f"a checkpoint of {name or 'another run'}"
        yield from _record(record)
        yield from _shown("versions", record.get("versions"))


def _record(record: dict) -> Iterator[tuple[str, object]]:
    for key in RECORD:
        yield key, "unknown" if record.get(key) is None else record[key]
    loader = (record.get("config") or {}).get("data_loader") or {}
    if place := (loader.get("args") or {}).get("data_dir"):
        yield "data folder", place
    figures = record.get("figures") or {}
    if figures:
        yield "figures", _in_words(figures)
    for cut in figures.get("cuts", []):
        yield f"step {cut.get('step')}", _in_words(cut)


def _in_words(values: dict) -> str:
    """The numbers and words among them: "epoch 3, val_accuracy 0.9861"."""
    plain = {k: v for k, v in values.items() if isinstance(v, int | float | str) and k != "step"}
    return ", ".join(
        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in plain.items()
    )


def _shown(name: str, values: dict | None) -> Iterator[tuple[str, str]]:
    if values:
        yield name, ", ".join(f"{key} {value}" for key, value in values.items() if value)
