"""What a test found: a table, result.json and, of a classifier, the page, the predictions and the wrong pictures."""

import json
import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from logger.charts import as_picture
from logger.files import (
    file_names,
    probability_columns,
    rounded,
    test_folder,
    threads_in_words,
    write_csv,
    write_pictures,
    write_text,
)
from logger.page import write_page


def report_test(
    config: Any,
    loader: Any,
    result: dict[str, float],
    seconds: float,
    predictions: Any,
    inspection: dict | None,
    maps: dict[int, Tensor],
    speed: dict[str, float] | None = None,
) -> Path:
    """Show a test's result as a table, and keep it in test/ beside the checkpoint
    (an exported file's in test/<its name>/); returns the folder.

    Args:
        config: the ConfigParser of the test
        loader: what was tested on
        result: the loss and the metrics
        seconds: what the pass over the samples took
        predictions: a `trainer.Predictions`
        inspection: what `trainer.inspection.inspect` gives, or None
        maps: heat maps (H, W) by position
        speed: latency and throughput, where they were measured
    """
    split = config.arguments.split
    suffix = "" if split == "test" else f"_{split}"
    count = len(loader.dataset)
    report = {
        "checkpoint": config.resume.name,
        "split": split,
        "n": count,
        **result,
        "seconds": seconds,
        "samples_per_second": count / seconds,
    }
    lines = [f"{config.resume}", *_table(report)]
    if speed:
        report["speed"] = speed
        lines.append(speed_line(speed))
    folder = test_folder(config.resume)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"result{suffix}.json"]
    if predictions.is_classification:
        if inspection:
            report["inspection"] = inspection
            lines += inspection_lines(inspection)
        report["per_class"] = predictions.per_class()
        names = _names(loader, count)
        written += [folder / f"predictions{suffix}.csv", folder / f"report{suffix}.html"]
        _write_predictions(written[1], names, predictions)
        wrong = _write_wrong(folder / f"wrong_images{suffix}", names, predictions, loader.input)
        written += [wrong] if wrong else []
        write_page(written[2], config, report, predictions, names, loader.input, maps, wrong)
    write_text(written[0], json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    logging.getLogger("test").info("\n".join([*lines, *(f"written: {path}" for path in written)]))
    return folder


def inspection_lines(inspection: dict) -> list[str]:
    """The inspection's rates, in words."""
    target = inspection["target"]
    rule = {"at_threshold": f"at p({target}) >= {inspection['threshold']:.4g}", "at_likeliest": "by the likeliest class"}
    percent = {None: "(none there)"}
    return [
        f"  {said}: missed {target} {percent.get(r['escape']) or format(r['escape'], '.2%')}, "
        f"false {target} {percent.get(r['overkill']) or format(r['overkill'], '.2%')}"
        for key, said in rule.items()
        for r in [inspection[key]]
    ]


def speed_line(speed: dict) -> str:
    """What `trainer.speed.speed_of` measured, in words."""
    return (
        f"  on {speed['device']}, {threads_in_words(speed['threads'])}: one sample {speed['p50']:.2f} ms "
        f"(95 % within {speed['p95']:.2f}), batches of {speed['batch_size']} {speed['samples_per_second']:,.0f} samples/s"
    )


def _table(report: dict[str, Any]) -> list[str]:
    rows = {k: v for k, v in report.items() if k != "checkpoint"}
    width = max(map(len, rows))
    return [f"  {name:<{width}}  {f'{value:.4f}' if isinstance(value, float) else value}" for name, value in rows.items()]


def _names(loader: Any, count: int) -> list[str]:
    """What each sample is called: its file's path, else its number."""
    return list(getattr(loader, "paths", None) or map(str, range(count)))


def _write_predictions(path: Path, names: list[str], predictions: Any) -> None:
    classes, probabilities = predictions.classes, predictions.probabilities
    rows = (
        [name, classes[target], classes[row.argmax()], *rounded(row)]
        for name, target, row in zip(names, predictions.targets, probabilities, strict=True)
    )
    write_csv(path, ["sample", "true", "predicted", *probability_columns(classes)], rows)


def _write_wrong(folder: Path, names: list[str], predictions: Any, normalized: dict) -> Path | None:
    """The pictures of the most confident mistakes; None where there are none."""
    classes, targets, predicted = predictions.classes, predictions.targets, predictions.probabilities.argmax(1)
    pictures = {p: data for p, data in predictions.pictures.items() if data.ndim == 3 and data.shape[0] in (1, 3)}
    if not pictures:
        return None
    stems = [f"{classes[targets[p]]}_to_{classes[predicted[p]]}_{Path(names[p]).stem}" for p in pictures]
    made = (as_picture(data, normalized) for data in pictures.values())
    return write_pictures(folder, dict(zip(file_names(stems, ".jpg"), made, strict=True)))
