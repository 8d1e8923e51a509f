"""Several networks, or versions of one, side by side: what each costs and what it gives."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from base import BaseExporter
from exporter.export import describe, network_of
from logger import aligned, threads_in_words, write_csv, write_text
from logger.charts import comparison_chart
from utils import onnx_file
from utils.errors import UserError
from utils.exported import Deployed
from utils.latency import enough_rounds, interleaved, ratio, spread
from utils.summary import count

COLUMNS = ("file", "megabytes", "macs", "parameters", "samples", "accuracy", "p50_ms", "p95_ms", "times_the_first")


def compare(config: Any, exporter: BaseExporter, build_trained_network: Callable, judge_of: Callable) -> Path:
    """Compare what --compare names, as files in which they would ship; checkpoints are exported for it, and not kept.

    Each is put to its own config's samples, of the size it wants, and all answer in turn for their latency.
    Written are compare.csv and compare.svg into compare/ beside the first; returns that folder.

    Args:
        config: the ConfigParser of the first
        exporter: writes those that are checkpoints
        build_trained_network: gives a ConfigParser's network
        judge_of: gives a ConfigParser's `trainer.Judge`

    Raises UserError for what cannot be read.
    """
    logger, rows, runs = config.get_logger("export"), [], {}
    threads, names = config.arguments.threads, _names(config.arguments.compare)
    with tempfile.TemporaryDirectory(prefix="kata-compare-") as folder:
        for number, (name, place) in enumerate(names.items()):
            own = config.of(Path(place))
            judge, path = judge_of(own), own.resume
            network = build_trained_network(own)
            sizes = {key: judge.state.get(key) for key in ("macs", "parameters")}
            if path.suffix != onnx_file.SUFFIX:
                path = Path(folder) / f"{number}{exporter.suffix}"
                example = torch.stack([judge.loader.example] * 2)
                sizes = count(network, example)
                deployed = Deployed(network, judge.state["input"], exporter.preprocess, exporter.softmax)
                network = network_of(exporter, path, judge.state, threads)
                raw = torch.from_numpy(network.raw(example))
                exporter.export(deployed, raw, path, describe(own, exporter, judge, sizes))
            judgement = judge(network)
            runs[name] = partial(network.opened(judge.engine.device), network.raw(judge.loader.example[None]))
            found = {"samples": len(judgement.outputs), "accuracy": judgement.accuracy}
            rows.append({"file": name, "megabytes": path.stat().st_size / 1e6, **sizes, **found})
        times = interleaved(runs, enough_rounds(runs))
    for row in rows:
        each = spread(times[row["file"]])
        row |= {"p50_ms": each["p50"], "p95_ms": each["p95"], "times_the_first": ratio(times, row["file"], rows[0]["file"])}
    place = config.resume.parent / "compare"
    place.mkdir(exist_ok=True)
    write_csv(place / "compare.csv", list(COLUMNS), ([row[column] for column in COLUMNS] for row in rows))
    write_text(place / "compare.svg", comparison_chart(rows))
    table = aligned([list(COLUMNS), *([_cell(row[column]) for column in COLUMNS] for row in rows)])
    logger.info("\n".join([*table, f"{threads_in_words(threads)}, one sample, each in turn", f"written: {place}"]))
    return place


def _names(places: list[str]) -> dict[str, str]:
    """What to call each: the end of its path, as much of it as tells them apart."""
    if len(set(places)) != len(places):
        raise UserError("--compare: the same is named twice")
    for depth in range(1, max(len(Path(place).parts) for place in places) + 1):
        names = ["/".join(Path(place).parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, places, strict=True))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
