"""What --info shows: what made a checkpoint, in lines for the screen."""

from collections.abc import Iterator
from pathlib import Path

from utils.files import printable
from utils.origin import origin

RECORD = ("digest", "data", "seed")  # of a checkpoint's origin


def describe(path: Path, state: dict) -> list[str]:
    """The lines about a checkpoint, or a file in its place, that `utils.checkpoint.find` gave."""
    return [
        f"{name:<12} {printable(str(value))}"
        for name, value in _entries(path, state)
        if value not in (None, "")
    ]


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
    if "judged" in state:
        yield "int8", _in_words(state.get("int8", {}) | state["judged"])
    yield "made from", record.get("checkpoint")
    yield "versions", _in_words(record["versions"])
    for session in state.get("sessions", []):
        yield f"epoch {session.get('epoch')}", session.get("command")
        yield "", _in_words({k: v for k, v in session.items() if k not in ("epoch", "command")})
    while record := record.get("made_from"):
        name = (record.get("config") or {}).get("name")
        yield "started from", f"a checkpoint of {name or 'another run'}"
        yield from _record(record)
        yield "versions", _in_words(record.get("versions"))


def _record(record: dict) -> Iterator[tuple[str, object]]:
    for key in RECORD:
        yield key, "unknown" if record.get(key) is None else record[key]
    loader = (record.get("config") or {}).get("data_loader")
    arguments = loader.get("args") if isinstance(loader, dict) else None  # else it is a name
    yield "data folder", (arguments or {}).get("data_dir")
    figures = record.get("figures") or {}
    yield "figures", _in_words(figures)
    for cut in figures.get("cuts", []):
        yield f"step {cut.get('step')}", _in_words(cut)


def _in_words(values: dict | None) -> str:
    """The numbers and words among them: "epoch 3, val_accuracy 0.9861"."""
    words = []
    for key, value in (values or {}).items():
        if isinstance(value, int | float | str) and value != "" and key != "step":
            words.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
    return ", ".join(words)
