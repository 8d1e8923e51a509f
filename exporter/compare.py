"""Size, accuracy and latency of several networks, or versions of one, side by side."""

import itertools
import json
import logging
import tempfile
from functools import partial
from pathlib import Path

from exporter.base_exporter import BaseExporter
from exporter.content import export_network
from exporter.deployed import ExportedNetwork
from exporter.evaluator import Evaluator
from exporter.latency import interleaved, spreads
from logger.charts import BLUE, new_figure, svg_text
from logger.files import aligned, threads_in_words, write_csv
from utils.checkpoint import origin_beside
from utils.errors import UserError
from utils.files import write_text


def compare(evaluator: Evaluator, exporter: BaseExporter, paths: list[str]) -> Path:
    """Compare checkpoints, runs and exported files, as they would be deployed.

    Checkpoints are exported into a temporary folder. Each network is evaluated on its own config's
    samples, in its own image size; for the latency they take turns. Writes compare.csv, compare.svg
    and compare.json (the origin of each) to compare/ beside the evaluator's checkpoint; returns
    that folder.

    Args:
        evaluator: of the run that the result is written to; for files without a config, its config
            names the data
        exporter: exports the checkpoints
        paths: what to compare; the first is the reference for the latency

    Raises UserError if one cannot be read, or is named twice.
    """
    folder = evaluator.config.resume.parent / "compare"
    rows, runs, origins = [], {}, {}
    with tempfile.TemporaryDirectory(prefix="kata-compare-") as temporary:
        for number, (name, path) in enumerate(short_names(paths).items()):
            own = evaluator.for_run(Path(path))
            file, metadata, network = own.config.resume, own.state, own.network
            origins[name] = origin_beside(folder / "compare.json", file, own.state)
            if not isinstance(network, ExportedNetwork):
                file = Path(temporary) / f"{number}{exporter.suffix}"
                network, metadata = export_network(exporter, own, file, origins[name])
            evaluation = own(network)
            [call] = own.calls(own.loader_for(network), [[0]])
            example = network.raw(*call)[0]
            runs[name] = partial(network.opened(own.engine.device), example)
            sizes = {key: metadata.get(key) for key in ("macs", "parameters")}
            results = {"samples": evaluation.samples, "accuracy": evaluation.accuracy}
            rows.append({"file": name, "megabytes": file.stat().st_size / 1e6, **sizes, **results})
        latency = spreads(interleaved(runs))
    for row in rows:
        times = latency[row["file"]]
        row |= {"p50_ms": times["p50"], "p95_ms": times["p95"], "times_the_first": times["ratio"]}
    folder.mkdir(exist_ok=True)
    write_csv(folder / "compare.csv", list(rows[0]), (row.values() for row in rows))
    write_text(folder / "compare.svg", comparison_chart(rows))
    record = {"origin": origins[rows[0]["file"]], "compared": origins}
    write_text(folder / "compare.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    table = aligned([list(rows[0]), *(list(map(shown, row.values())) for row in rows)])
    note = f"{threads_in_words(evaluator.threads)}, one sample, each in turn"
    logging.getLogger("export").info("\n".join([*table, note, f"written: {folder}"]))
    return folder


def short_names(paths: list[str]) -> dict[str, str]:
    """Return name -> path; a name is as much of the path's end as makes it unique.

    Raises UserError if a path is given twice.
    """
    if len(set(map(Path, paths))) != len(paths):
        raise UserError("--compare: the same path is named twice")
    parts = {path: Path(path).parts for path in paths}
    by_depth = ({"/".join(p[-n:]): path for path, p in parts.items()} for n in itertools.count(1))
    return next(names for names in by_depth if len(names) == len(paths))


def shown(value: str | float | None) -> str:
    """Return a cell of the table on the screen."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value or ""


def comparison_chart(rows: list[dict]) -> str:
    """Return an SVG chart of each file's latency, size and accuracy; `rows` as in compare.csv."""
    panels = {"p50_ms": "ms, one sample", "megabytes": "MB", "accuracy": "accuracy"}
    figure = new_figure(9, 1.2 + 0.45 * len(rows))
    subplots = figure.subplots(1, len(panels), sharey=True)
    for axes, (key, label) in zip(subplots, panels.items(), strict=True):
        bars = axes.barh([row["file"] for row in rows], [row[key] or 0 for row in rows], color=BLUE)
        axes.bar_label(bars, [shown(row[key]) for row in rows], padding=3)
        axes.margins(x=0.25)
        axes.set_xlabel(label)
    axes.invert_yaxis()  # the first on top
    return svg_text(figure)
