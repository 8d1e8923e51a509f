"""What a pruning run reports after each step: prune/steps.csv, a page, TensorBoard, a table for the screen."""

from itertools import pairwise
from pathlib import Path

from logger.charts import tradeoff_chart
from logger.files import aligned, write_csv
from logger.page import write_html
from logger.visualization import TensorboardWriter

CURVES = ("accuracy", "recall", "channels", "macs", "params", "size_mb", "latency_ms", "latency", "torch_ms")
COLUMNS = (
    *("step", "channels", "macs", "params", "size_mb", "latency_ms", "accuracy", "accuracy_before"),
    *("recall", "recall_before", "latency", "torch_ms", "epochs", "checkpoint"),
)
WHOLES = {
    "channel_sparsity": "the original's channels gone",
    "macs": "the original's MACs",
    "params": "the original's parameters",
    "latency": "the original's latency",
}
MEASURABLE = 0.1  # milliseconds: what takes less varies from measurement to measurement
SAME_LATENCY = 0.99  # of what it was: nearer than that, measurements differ by themselves


def report_pruning(
    folder: Path,
    name: str,
    rows: list[dict],
    widths: list[dict[str, int]],
    aim: dict,
    writer: TensorboardWriter,
    target_class: str | None = None,
    finished: bool = True,
) -> Path:
    """Write steps.csv and report.html anew, and the newest row to TensorBoard, by step; returns the page's path.

    Args:
        folder: prune/ in the run's folder; it need not be there
        name: the config's
        rows: what the network is (COLUMNS), unpruned and after each step; None for what was not measured.
            `latency` is the share of the original's, "_before" what the cut left before the training that followed.
        widths: beside each row, the output channels of each layer
        aim: what the pruner aims at: its name, and the value
        writer: the run's
        target_class: whose recall the rows have; None where it is the worst class's
        finished: no step will follow
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "steps.csv", list(COLUMNS), ([row[column] for column in COLUMNS] for row in rows))
    [(key, value)] = aim.items()
    shown, best = [row | {"of": _of_each_aim(row, rows[0])} for row in rows], recommended(rows, aim)
    accuracy, drop = rows[0]["accuracy"], aim.get("max_accuracy_drop")
    least = None if accuracy is None or drop is None else accuracy - drop
    original = rows[0]["latency_ms"]
    goals = {"latency": value / original} if key == "latency_ms" and original else aim
    axes = {share: [row["of"][share] for row in shown] for share in ("macs", "latency")}
    checkpoint = rows[best]["checkpoint"]
    write_html(
        folder / "report.html",
        "prune_report.html",
        name=name,
        run=folder.parent.name,
        finished=finished,
        rows=shown,
        best=best,
        checkpoint=checkpoint and folder.parent / checkpoint,
        aim=_said(key, value),
        reached=_said(key, shown[-1]["of"][key]),
        within_drop=drop is not None,
        slow=no_faster(rows),
        recall=f"recall of {target_class}" if target_class else "recall of the worst class",
        charts={
            share: tradeoff_chart(rows, axis, WHOLES[share], best, goals.get(share), least)
            for share, axis in axes.items()
            if any(None not in (x, row["accuracy"]) for x, row in zip(axis, rows, strict=True))
        },
        layers=[(layer, width, widths[best].get(layer, 0), widths[-1].get(layer, 0)) for layer, width in widths[0].items()],
        number=_number,
        short=_short,
    )
    _draw(writer, rows[-1])
    return folder / "report.html"


def pruning_table(rows: list[dict], aim: dict | None = None) -> list[str]:
    """The steps as lines for the screen, the recommended one marked as `report_pruning` does for the same `aim`."""
    best, first = recommended(rows, aim or {}), rows[0]
    table = [["step", "channels", "MACs", "", "params", "", "MB", "ms", "", "accuracy", "recall", ""]]
    for row in rows:
        of = _of_each_aim(row, first)
        table.append(
            [
                *(str(row["step"]), f"{row['channels']:,}", _short(row["macs"]), _number(of["macs"], ".1%")),
                *(_short(row["params"]), _number(of["params"], ".1%"), _number(row["size_mb"], ".2f")),
                *(_number(row["latency_ms"], ".2f"), _number(of["latency"], ".1%")),
                *(_change(row["accuracy_before"], row["accuracy"]), _change(row["recall_before"], row["recall"])),
                "* recommended" if row["step"] == best else "",
            ]
        )
    return [*aligned(table), *no_faster(rows)]


def recommended(rows: list[dict], aim: dict) -> int:
    """The step that is the best bargain, 0 for the unpruned network.

    With {"max_accuracy_drop": d} it is the last step whose accuracy is at least the original's - d. Otherwise the last
    one where accuracy never fell below the original's, else the knee of accuracy against multiply-adds: the point
    furthest above the straight line from the first to the last (Satopaa et al., Finding a "Kneedle" in a Haystack,
    2011; its scaling of both axes to 1 does not change which that is). Of equals it is the last, so too where no point
    lies above the line. Steps without an accuracy do not count; without the original's it is the last.
    """
    known, first = [row for row in rows if row["accuracy"] is not None], rows[0]
    if first["accuracy"] is None:
        return rows[-1]["step"]
    if "max_accuracy_drop" in aim:
        least = first["accuracy"] - aim["max_accuracy_drop"] - 1e-9  # 0.8 - 0.1 is a little more than 0.7
        return [row["step"] for row in known if row["accuracy"] >= least][-1]
    last = known[-1]
    if all(row["accuracy"] >= first["accuracy"] for row in known):
        return last["step"]

    def above_line(row: dict) -> float:
        gone, lost = (first["macs"] - row["macs"]) / first["macs"], first["accuracy"] - row["accuracy"]
        all_gone, all_lost = (first["macs"] - last["macs"]) / first["macs"], first["accuracy"] - last["accuracy"]
        return round(gone * all_lost - lost * all_gone, 12)

    return max(known, key=lambda row: (above_line(row), row["step"]))["step"]


def no_faster(rows: list[dict]) -> list[str]:
    """A sentence for each step that made the network smaller, but not faster."""
    return [
        f"Step {row['step']} made the network smaller but not faster: {row['macs'] / rows[0]['macs']:.1%} of the original's "
        f"MACs after {old['macs'] / rows[0]['macs']:.1%}, {row['latency']:.1%} of its latency after {old['latency']:.1%}."
        for old, row in pairwise(rows)
        if None not in (old["latency"], row["latency"])
        and row["latency"] > SAME_LATENCY * old["latency"]
        and row["latency_ms"] > MEASURABLE
    ]


def _of_each_aim(row: dict, first: dict) -> dict[str, float | None]:
    """How far a row has come, as each of the aims counts it."""
    known = None not in (row["accuracy"], first["accuracy"])
    return {
        "channel_sparsity": 1 - row["channels"] / first["channels"],
        "macs": row["macs"] / first["macs"],
        "params": row["params"] / first["params"],
        "latency": row["latency"],
        "latency_ms": row["latency_ms"],
        "max_accuracy_drop": first["accuracy"] - row["accuracy"] if known else None,
    }


def _said(aim: str, value: float | None) -> str:
    """An aim, or what was reached of it, in words."""
    if aim == "latency_ms":
        return f"a latency of {_number(value, '.2f')} ms"
    if aim == "max_accuracy_drop":
        side = "above" if value is not None and value < 0 else "below"
        return f"accuracy {_number(value and abs(value), '.4f')} {side} the original's"
    return f"{_number(value, '.1%')} of {WHOLES[aim]}"


def _draw(writer: TensorboardWriter, row: dict) -> None:
    place = writer.step, writer.mode
    for curve in CURVES:
        if row[curve] is not None:
            writer.set_step(row["step"], curve)  # its name comes last in the tag: pruning/accuracy
            writer.add_scalar("pruning", row[curve])
    writer.set_step(*place)


def _change(before: float | None, after: float | None) -> str:
    """0.5312 -> 0.9750; the first is missing where nothing was cut."""
    return _number(after, ".4f") if before is None else f"{before:.4f} -> {_number(after, '.4f')}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _short(count: int) -> str:
    """1_814_073_344 -> 1.81 G."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)
