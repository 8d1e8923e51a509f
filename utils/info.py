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
    yield from _record(record)
    if "checkpoint" in record:
        yield "made from", record["checkpoint"]
    yield from _shown("versions", record["versions"])
    for session in state.get("sessions", []):
        yield f"epoch {session.get('epoch')}", session.get("command")
        yield from _shown("", {k: v for k, v in session.items() if k not in ("epoch", "command")})
    while record := record.get("made_from"):
        yield "started from", "a checkpoint of another run"
        yield from _record(record)
        yield from _shown("versions", record.get("versions"))


def _record(record: dict) -> Iterator[tuple[str, object]]:
    for key in RECORD:
        yield key, "unknown" if record.get(key) is None else record[key]


def _shown(name: str, values: dict | None) -> Iterator[tuple[str, str]]:
    if values:
        yield name, ", ".join(f"{key} {value}" for key, value in values.items() if value)
