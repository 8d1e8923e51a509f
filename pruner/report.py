"""What a pruning run reports after each step: steps.csv, an HTML page, TensorBoard, a table."""

import math
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from logger.charts import BLUE, RED, new_figure, svg_uri
from logger.files import aligned, write_csv
from logger.page import write_html
from logger.visualization import TensorboardWriter
from pruner.base_pruner import LIMITS

Row = dict[str, Any]  # results of a step: COLUMNS, None for what was not measured
COLUMNS = ["step", "channels", "macs", "params", "size_mb", "latency_ms", "accuracy"]
COLUMNS += ["accuracy_before", "recall", "recall_before", "latency", "torch_ms", "epochs"]
COLUMNS += ["checkpoint", "samples", "escape"]
UNDRAWN = {"step", "accuracy_before", "recall_before", "epochs", "checkpoint", "samples"}
SIZES = ["step", "channels", "MACs", "params"]  # what tables on the screen begin with
AIMS = {  # how to show a number, and what it is
    "channel_sparsity": (".1%", "{} of the original's channels gone"),
    "macs": (".1%", "{} of the original's MACs"),
    "params": (".1%", "{} of the original's parameters"),
    "latency": (".1%", "{} of the original's latency"),
    "latency_ms": (".2f", "a latency of {} ms"),
    "max_escape_drop": (".4f", "{} more of the target class missed than by the original"),
}
POINT, SEEN = 0.01, 0.03  # of accuracy, that a smaller network may lose
QUANTILE = 1.645  # of the normal distribution, for 95 % on one side
MEASURABLE = 0.1  # milliseconds: shorter times vary from measurement to measurement
SAME_LATENCY = 0.99  # a latency ratio above this may be chance


def report_pruning(
    folder: Path,
    name: str,
    rows: list[Row],
    widths: list[dict[str, int]],
    aim: dict[str, float],
    writer: TensorboardWriter,
    target_class: str | None = None,
    finished: bool = True,
) -> Path:
    """Write steps.csv and report.html, and the newest row to TensorBoard. Returns the page's path.

    Args:
        folder: prune/ in the run's folder; created if needed
        name: the config's name
        rows: results of the unpruned network and of each step; None for what was not measured
        widths: for each row the output channels of each layer
        aim: the pruner's aim, by name
        writer: the run's
        target_class: the class whose recall is in the rows; None if it is that of the worst class
        finished: no step will follow
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "steps.csv", COLUMNS, ([row.get(key) for key in COLUMNS] for row in rows))
    rows = [row | {"reached": _reached(row, rows[0])} for row in rows]
    first, last, best, charts = rows[0], rows[-1], recommended(rows, aim), {}
    [(measure, value)] = aim.items()
    if measure == "latency_ms" and first["latency_ms"]:
        aim = {"latency": value / first["latency_ms"]}
    for share in ("macs", "latency"):
        if any(None not in (row["reached"][share], row["accuracy"]) for row in rows):
            charts[share] = tradeoff_chart(rows, share, best, aim)
    checkpoint, page = rows[best]["checkpoint"], folder / "report.html"
    write_html(
        page,
        Path(__file__).with_name("report.html"),
        name=name,
        run=folder.parent.name,
        finished=finished,
        rows=rows,
        best=best,
        checkpoint=checkpoint and folder.parent / checkpoint,
        aim=_describe(measure, value),
        reached=_describe(measure, last["reached"][measure]),
        notes=[*explanation(rows, aim), *not_faster(rows)],
        recall=f"recall of {target_class}" if target_class else "recall of the worst class",
        charts=charts,
        widths={layer: [step.get(layer, 0) for step in widths] for layer in widths[0]},
        number=_number,
        short=_short,
    )
    position = writer.step, writer.mode
    for column in COLUMNS:
        if column not in UNDRAWN and last.get(column) is not None:
            writer.set_step(last["step"], column)  # the mode ends the tag: pruning/accuracy
            writer.add_scalar("pruning", last[column])
    writer.set_step(*position)
    return page


def plan_table(sizes: list[dict[str, float]], round_to: int) -> list[str]:
    """The planned steps as lines for the screen, those that remove nothing merged with the next.

    Args:
        sizes: "channels", "macs" and "params" of the network and, by plan, after each step
        round_to: widths are multiples of it
    """
    empty = [step for step, (old, new) in enumerate(pairwise(sizes), 1) if old == new]
    left = [size for step, size in enumerate(sizes) if step not in empty]
    table = [[str(step), *_size_cells(size, left[0])] for step, size in enumerate(left)]
    lines = aligned([SIZES, *table])
    if empty:
        *others, last = map(str, empty)
        steps = f"steps {', '.join(others)} and {last} remove" if others else f"step {last} removes"
        reason = f"widths are multiples of {round_to}" if round_to > 1 else "layers are narrow"
        become = f"{len(sizes) - 1} steps become {len(left) - 1}"
        lines += textwrap.wrap(f"{steps} nothing, as {reason}: {become}", 80)
    return lines


def pruning_table(rows: list[Row], aim: dict[str, float]) -> list[str]:
    """The steps as lines for the screen; the recommended one is marked."""
    best, forms = recommended(rows, aim), {"size_mb": ".2f", "latency_ms": ".2f", "latency": ".1%"}
    forms |= {"accuracy": ".4f", "recall": ".4f"}
    table = [[*SIZES, "MB", "ms", "latency", "accuracy", "recall", ""]]
    for row in rows:
        cells = [str(row["step"]), *_size_cells(row, rows[0])]
        cells += [_number(row[key], form) for key, form in forms.items()]
        table.append([*cells, "*" if row["step"] == best else ""])
    notes = ["* recommended", *explanation(rows, aim), *not_faster(rows)]
    return aligned(table) + [line for note in notes for line in textwrap.wrap(note, 80)]


def recommended(rows: list[Row], aim: dict[str, float]) -> int:
    """The step with the best trade-off, 0 for the unpruned network.

    With a limit, {"max_accuracy_drop": d} or {"max_escape_drop": d}, it is the last that keeps it.
    Otherwise it is the last one that is not surely a percentage point, and was not seen to be three
    points, less accurate than the most accurate of all. Steps without an accuracy do not count;
    without the original's it is the last step.
    """
    known, first = [row for row in rows if row["accuracy"] is not None], rows[0]
    if first["accuracy"] is None:
        return rows[-1]["step"]
    if aim.keys() & LIMITS.keys():
        return [row["step"] for row in known if keeps(row, first, aim)][-1]
    best = max(known, key=lambda row: row["accuracy"])
    least = best["accuracy"] - SEEN - 1e-9  # few samples are sure of nothing
    close = [row for row in known if row["accuracy"] >= least]
    return [row["step"] for row in close if not surely_less(row, best, POINT)][-1]


def keeps(row: Row, first: Row, limit: dict[str, float]) -> bool:
    """Whether a step is not worse than the original by more than the limit allows."""
    [(name, allowed)] = limit.items()
    return _reached(row, first)[name] <= allowed + 1e-9  # 0.8 - 0.7 is more than 0.1


def surely_less(row: Row, other: Row, margin: float = 0.0) -> bool:
    """Whether a step's accuracy is lower than another's by more than `margin`, with 95 % confidence
    if the number of samples is known: Agresti and Caffo 2000, doi:10.1080/00031305.2000.10474560,
    as for two sets of samples; they are the same ones, so it is surer than that.
    """
    difference, variance = other["accuracy"] - row["accuracy"], 0.0
    if count := row.get("samples"):
        shares = [(each["accuracy"] * count + 1) / (count + 2) for each in (row, other)]
        difference = shares[1] - shares[0]
        variance = sum(share * (1 - share) for share in shares) / (count + 2)
    return difference - margin > QUANTILE * math.sqrt(variance) + 1e-9


def explanation(rows: list[Row], aim: dict[str, float]) -> list[str]:
    """Sentences on how sure the recommendation is, on the step that comes next, and on an original
    that had not finished learning.
    """
    known, first = [row for row in rows if row["accuracy"] is not None], rows[0]
    if first["accuracy"] is None:
        return []
    chosen, sentences = rows[recommended(rows, aim)], []

    def compared(one: Row, other: Row) -> str:
        count = f" on {one['samples']} samples" if one.get("samples") else ""
        return f"{one['accuracy']:.4f} against {other['accuracy']:.4f}{count}"

    if smaller := [row for row in known if row["step"] > chosen["step"]]:
        next_one = smaller[0]
        is_sure = surely_less(next_one, chosen)
        sentences.append(
            f"Step {next_one['step']} would leave {next_one['macs'] / first['macs']:.1%} of the "
            f"MACs, but is {'' if is_sure else 'not surely, but probably '}less accurate than the "
            f"recommended one: {compared(next_one, chosen)}."
        )
    elif larger := [row for row in known if row["step"] < chosen["step"]]:
        before = larger[-1]
        word = "surely" if surely_less(chosen, before) else "not surely"
        sentences.append(
            f"Step {before['step']}, the next larger one, is {word} more accurate than the "
            f"recommended one: {compared(before, chosen)}."
        )
    best = max(known, key=lambda row: row["accuracy"])
    if surely_less(first, best):
        sentences.append(
            f"Step {best['step']} is more accurate than the original, {compared(best, first)}: "
            "that had not finished learning; train it longer before it is pruned."
        )
    return sentences


def not_faster(rows: list[Row]) -> list[str]:
    """A sentence for each step that made the network smaller but not faster."""
    sentences, macs = [], rows[0]["macs"]
    for old, row in pairwise(rows):
        known = None not in (old["latency"], row["latency"]) and row["latency_ms"] > MEASURABLE
        smaller = row["macs"] < old["macs"]
        if smaller and known and row["latency"] > SAME_LATENCY * old["latency"]:
            sentences.append(
                f"Step {row['step']} made the network smaller but not faster: "
                f"{row['macs'] / macs:.1%} of the original's MACs after {old['macs'] / macs:.1%}, "
                f"{row['latency']:.1%} of its latency after {old['latency']:.1%}."
            )
    return sentences


def tradeoff_chart(rows: list[Row], share: str, best: int, aim: dict[str, float]) -> str:
    """Accuracy after training and after the cut, against the share of the original that is left.

    Args:
        rows: with "reached", see report_pruning
        share: "macs" or "latency"
        best: the recommended step
        aim: shown as a line if it is about this share or about the accuracy
    """
    figure = new_figure(5.4, 4.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    left = 100 * np.array([row["reached"][share] for row in rows], dtype=float)
    keys = "accuracy_before", "accuracy"
    before, after = (np.array([row[key] for row in rows], dtype=float) for key in keys)
    upper.plot(left, after, "o-", color=BLUE, label="after training")
    upper.plot(left[best], after[best], "o", color="#17663a", markersize=9, label="recommended")
    lower.vlines(left, before, after, color="silver", zorder=1)
    lower.plot(left, after, "o", color=BLUE)
    lower.plot(left, before, "o", color=RED, markerfacecolor="white", label="after the cut")
    for row, x, y in zip(rows, left, after, strict=True):
        if np.isfinite(x + y):
            upper.annotate(row["step"], (x, y), (0, 7), textcoords="offset points", ha="center")
    line = {"color": "grey", "linestyle": "--", "zorder": 0}
    if "max_accuracy_drop" in aim and rows[0]["accuracy"] is not None:
        upper.axhline(rows[0]["accuracy"] - aim["max_accuracy_drop"], label="aim", **line)
    if share in aim:
        upper.axvline(100 * aim[share], label="aim", **line)
        lower.axvline(100 * aim[share], **line)
    for axes in (upper, lower):
        axes.ticklabel_format(useOffset=False)
        axes.margins(0.08, 0.15)
        axes.set_ylabel("accuracy")
        axes.spines[["top", "right"]].set_visible(False)
    lower.set_xlabel(AIMS[share][1].format("%"))
    legend = {"frameon": False, "columnspacing": 1.2, "handletextpad": 0.5}
    figure.legend(loc="outside upper center", ncols=4, **legend)
    return svg_uri(figure)


def _size_cells(size: Row, whole: Row) -> list[str]:
    shares = (f"{size[key] / whole[key]:.1%}" for key in ("macs", "params"))
    return [f"{size['channels']:,.0f}", *shares]


def _reached(row: Row, first: Row) -> dict[str, float | None]:
    """How far a step has come, in the unit of each aim."""
    known = None not in (row["accuracy"], first["accuracy"])
    return row | {
        "channel_sparsity": 1 - row["channels"] / first["channels"],
        "macs": row["macs"] / first["macs"],
        "params": row["params"] / first["params"],
        "max_accuracy_drop": first["accuracy"] - row["accuracy"] if known else None,
        "max_escape_drop": None if (now := row.get("escape")) is None else now - first["escape"],
    }


def _describe(aim: str, value: float | None) -> str:
    """An aim, or how far it is reached, in words."""
    if aim == "max_accuracy_drop":
        side = "above" if value is not None and value < 0 else "below"
        return f"accuracy {_number(value and abs(value), '.4f')} {side} the original's"
    form, words = AIMS[aim]
    return words.format(_number(value, form))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _short(count: int) -> str:
    """1_814_073_344 -> 1.81 G."""
    power = min(3, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.2f} {' kMG'[power]}" if power else str(count)
