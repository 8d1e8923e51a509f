"""Size, accuracy and latency of several networks, or versions of one, side by side."""

import itertools
import logging
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from data_loader.transforms import padded
from exporter.base_exporter import BaseExporter
from exporter.content import export_network
from exporter.deployed import ExportedNetwork
from exporter.evaluator import Evaluator
from exporter.gate import monitored
from exporter.latency import interleaved, spreads
from exporter.startup import measure_startup
from logger.charts import BLUE, new_figure, svg_text
from logger.files import aligned, threads_in_words, write_csv
from utils.checkpoint import origin_beside
from utils.engine.launch import cores
from utils.errors import UserError
from utils.files import write_json, write_text

FILES = 20  # that are decoded in turn


def compare(evaluator: Evaluator, exporter: BaseExporter, paths: list[str]) -> Path:
    """Compare checkpoints, runs and exported files, as they would be deployed.

    Checkpoints are exported into a temporary folder. Each network is evaluated on its own config's
    samples, in its own image size; for the latency they take turns. Writes compare.csv, latency.csv
    (with 1 to all threads), compare.svg and compare.json (the origin of each) to compare/ beside
    the evaluator's checkpoint; returns that folder.

    Args:
        evaluator: of the run that the result is written to; for files without a config, its config
            names the data
        exporter: exports the checkpoints
        paths: what to compare; the first is the reference for the latency

    Raises UserError if one cannot be read, or is named twice.
    """
    folder = evaluator.config.resume.parent / "compare"
    _, metric = monitored(evaluator.config.option("trainer", "monitor", "off"))
    measured = dict.fromkeys(filter(None, ("accuracy", metric)))
    usual = evaluator.threads or cores()
    runs: dict[int, dict] = {count: {} for count in sorted({*thread_counts(), usual})}
    rows, decisions, origins = [], {}, {}
    with tempfile.TemporaryDirectory(prefix="compare-") as temporary:
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
            for count, opened in runs.items():
                opened[name] = partial(network.load(count, str(own.engine.device)), example)
            if hasattr(own.loader, "decoded"):
                decisions[name] = from_file(own, network)
            row = {"file": name, "megabytes": file.stat().st_size / 1e6}
            row |= {key: metadata.get(key) for key in ("macs", "parameters")}
            row |= {"samples": evaluation.samples}
            row |= {key: evaluation.metrics.get(key) for key in measured}
            rows.append(row | measure_startup(file, example, metadata.get("runtime")))
        latency = {count: spreads(interleaved(opened)) for count, opened in runs.items()}
        decided = spreads(interleaved(decisions)) if decisions else {}
    for row in rows:
        times = latency[usual][row["file"]]
        row |= {"p50_ms": times["p50"], "p95_ms": times["p95"], "times_the_first": times["ratio"]}
        row["from_file_ms"] = decided.get(row["file"], {}).get("p50")
    folder.mkdir(exist_ok=True)
    write_csv(folder / "compare.csv", list(rows[0]), (row.values() for row in rows))
    table = [
        [name, count, times["p50"], times["p95"]]
        for count, each in latency.items()
        for name, times in each.items()
    ]
    write_csv(folder / "latency.csv", ["file", "threads", "p50_ms", "p95_ms"], table)
    write_text(folder / "compare.svg", comparison_chart(rows, list(measured)))
    record = {"origin": origins[rows[0]["file"]], "compared": origins}
    write_json(folder / "compare.json", record)
    # one column per file: 14 columns are too wide for a terminal
    present = [key for key in rows[0] if any(row[key] is not None for row in rows)]
    lines = [[key, *(shown(row[key]) for row in rows)] for key in present]
    for count, each in latency.items():
        cells = [f"{times['p50']:.4g} ({times['p95']:.4g})" for times in each.values()]
        lines.append([threads_in_words(count), *cells])
    note = (
        "milliseconds for one sample, each file in turn: median (95th percentile); "
        f"{threads_in_words(usual)} unless stated"
    )
    logging.getLogger("export").info("\n".join([*aligned(lines), note, f"written: {folder}"]))
    return folder


def thread_counts() -> list[int]:
    """1, 2, 4 ... and as many as there are cores."""
    return [*(2**n for n in range(cores().bit_length()) if 2**n < cores()), cores()]


def from_file(evaluator: Evaluator, network: ExportedNetwork) -> Callable[[], object]:
    """From an image file to the network's answer, for the samples' files in turn."""
    loader = evaluator.loader
    files = itertools.cycle([file.path for file in loader.part().files[:FILES]])
    run = network.opened(evaluator.engine.device)

    def decide() -> object:
        image = loader.read(next(files))
        args = padded([image]) if network.takes_images else (loader.prepare(image)[None],)
        return run(network.raw(args, {})[0])

    return decide


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


def comparison_chart(rows: list[dict], metrics: list[str]) -> str:
    """Return an SVG chart of each file's latency, size and one of these metrics; `rows` as in
    compare.csv.
    """
    known = [name for name in metrics if any(row[name] is not None for row in rows)]
    panels = {"p50_ms": "ms, one sample", "megabytes": "MB"} | {name: name for name in known[:1]}
    figure = new_figure(9, 1.2 + 0.45 * len(rows))
    subplots = figure.subplots(1, len(panels), sharey=True)
    for axes, (key, label) in zip(subplots, panels.items(), strict=True):
        bars = axes.barh([row["file"] for row in rows], [row[key] or 0 for row in rows], color=BLUE)
        axes.bar_label(bars, [shown(row[key]) for row in rows], padding=3)
        axes.margins(x=0.25)
        axes.set_xlabel(label)
    axes.invert_yaxis()  # the first on top
    return svg_text(figure)
