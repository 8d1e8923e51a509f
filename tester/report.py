"""The result of a test: a table, result.json, an HTML page and the predictions; for a classifier
also the images of mistakes."""

import inspect
import json
import logging
from pathlib import Path

from PIL import Image

from base import BaseTask
from logger.base_tracker import tell_trackers
from logger.charts import encode, image_uri, save_figure, svg_uri, to_pil_image
from logger.files import file_names, threads_in_words
from logger.metrics_csv import MetricsFile
from logger.page import write_html
from tester import charts
from tester.heatmap import explain
from tester.inspection import costs_in_words, inspect_predictions
from tester.language import Language, Translate, translator
from tester.novelty import Novelty, compare
from tester.predictions import Predictions, write_table
from tester.samples import Samples
from tester.trained import Result, Test
from trainer.decisions import CONFIDENCE
from utils.checkpoint import origin_beside
from utils.errors import explained
from utils.files import named, numbered, write_json
from utils.run_folder import log_dir_for

SHOWN_UNLIKE = 10  # samples beyond the limit, in the page
SHOWN_GROUPS = 20  # the worst, in the page
SHOWN_COLUMNS = 8  # of a task's samples, in the page
LARGEST_SAMPLE = 960  # pixels of a task's image
MOST_CLASSES = 200  # with a confusion matrix in the page
CURVES = "curves.png"
AS_IT_IS = {"mean": [0.0], "std": [1.0]}  # the normalization of images of 0 to 1


def report_test(
    test: Test,
    result: Result,
    threshold: dict | None,
    novelty: Novelty | None,
    language: Language = "en",
) -> dict:
    """Log a test's result as a table, and write it into `test.folder`; returns the content of
    result.json.

    Args:
        result: from `Test.predict`
        threshold: from `tester.inspection.find_threshold`
        novelty: from `tester.inspection.find_novelty`
        language: of the page
    """
    predictions, samples, metrics, seconds = result
    checkpoint, config, folder = test.config.resume, test.config.config, test.folder
    count, suffix = len(test.loader.dataset), "" if test.split == "test" else f"_{test.split}"
    numbers = {"split": test.split, "n": count, **metrics}
    numbers |= {"seconds": seconds, "samples_per_second": count / seconds}
    width = max(map(len, numbers))
    lines = [f"{checkpoint}"]
    for name, value in numbers.items():
        lines.append(f"  {name:<{width}}  {f'{value:.4f}' if isinstance(value, float) else value}")
    origin = origin_beside(folder / "result.json", checkpoint, test.trained)
    report = {"checkpoint": checkpoint.name, "origin": origin, **numbers}
    if speed := test.measure_speed():
        report["speed"] = speed
        lines.append(speed_line(speed))
    folder.mkdir(parents=True, exist_ok=True)
    names = test.loader.paths or [str(number) for number in range(count)]
    written = [folder / f"result{suffix}.json"]
    columns, template, values = {}, "", {}
    t, display = translator(language), config.get("shown_names", {})
    if predictions.is_classification:
        columns, template = predictions.columns(), "report.html"
        if inspection := inspect_predictions(predictions, threshold):
            report["inspection"] = inspection
            lines += inspection_lines(inspection)
        if novelty:
            report["novelty"] = compare(predictions, novelty, "samples")
        report["per_class"] = predictions.per_class()
        if groups := test.groups():
            report["per_group"] = predictions.per_group(groups)
        images = {p: to_pil_image(x, test.loader.input) for p, x in predictions.images.items()}
        values = _classes_page(test, predictions, images, inspection, t) | {"wrong": None}
        if images:
            true, predicted = columns["true"], columns["predicted"]
            stems = (f"{true[p]}_to_{predicted[p]}_{Path(names[p]).stem}" for p in images)
            wrong_images = dict(zip(file_names(stems, ".jpg"), images.values(), strict=True))
            wrong = write_images(folder / f"wrong_images{suffix}", wrong_images)
            values["wrong"] = wrong.name
            written.append(wrong)
    elif samples.columns or samples.images:
        columns, template = samples.columns, "samples.html"
        with explained(f"task: {type(test.task).__name__}.tables does not fit its columns"):
            report["tables"] = test.task.tables(columns)
        values = _samples_page(test.task, samples, names)
    if template:
        table, page = folder / f"predictions{suffix}.csv", folder / f"report{suffix}.html"
        curves = test.run and _curves(test.run, test.trained, folder, t)
        written[1:1] = [table, page, *([folder / CURVES] if curves else [])]
        write_table(table, {"sample": names} | columns)
        write_html(
            page,
            Path(__file__).with_name(template),
            language,
            t=t,
            display=lambda name: display.get(name, name),
            curves=curves,
            name=test.name,
            folds=test.folds,
            run=folder.name if test.run is None else checkpoint.parent.name,
            report=report,
            metrics=metrics,
            names=names,
            essentials=_essentials(checkpoint.name, origin["digest"], config),
            config=json.dumps(config, indent=2, ensure_ascii=False),
            **values,
        )
    write_json(written[0], report)
    logging.getLogger("test").info("\n".join([*lines, *(f"written: {path}" for path in written)]))
    files = [path for path in written if path.is_file()]
    name, trackers = f"{checkpoint.name}.{test.split}", test.config.init_obj("trackers")
    tell_trackers(trackers, checkpoint, name, metrics, files)
    return report


def _classes_page(
    test: Test,
    predictions: Predictions,
    images: dict[int, Image.Image],
    inspection: dict | None,
    t: Translate,
) -> dict[str, object]:
    """What report.html shows of a classifier's predictions; `images` are those of mistakes."""
    display = test.config.get("shown_names", {})
    names = [display.get(name, name) for name in predictions.classes]
    maps = explain(test, predictions) if test.run else {}  # not of several networks
    mistakes, suspects = predictions.shown()
    pairs: dict[tuple[int, int], list[int]] = {}
    for position in mistakes:
        pair = int(predictions.targets[position]), int(predictions.predicted[position])
        pairs.setdefault(pair, []).append(position)
    target = inspection and names[predictions.classes.index(inspection["target"])]
    return {
        "classes": names,
        "target": target,
        "pairs": sorted(pairs.items(), key=lambda pair: -len(pair[1])),
        "pair_counts": {pair: predictions.count(*pair) for pair in pairs},
        "predictions": predictions,
        "mistakes": mistakes,
        "mistake_count": int((predictions.targets != predictions.predicted).sum()),
        "suspects": suspects,
        "shown_groups": SHOWN_GROUPS,
        "unlike": [] if predictions.distances is None else predictions.unlike()[:SHOWN_UNLIKE],
        "images": {p: image_uri(images[p]) for p in mistakes + suspects if p in images},
        "heat_method": test.config.get("heatmap", {}).get("method", "LayerCAM") if maps else None,
        "maps": {p: image_uri(charts.overlay(images[p], heat)) for p, heat in maps.items()},
        "confusion": len(names) <= MOST_CLASSES
        and charts.confusion_chart(predictions.confusion(), names, t),
        "inspection": inspection,
        "costs": inspection and costs_in_words(inspection, t, target),
        "confidence": inspection and inspection.get("confidence", CONFIDENCE),
        "threshold_chart": inspection
        and charts.threshold_chart(predictions, inspection, target, t),
    }


def _curves(run: Path, trained: dict, folder: Path, t: Translate) -> str | None:
    """The curves of the run's training, written to curves.png, too; None if there are none."""
    file = log_dir_for(run) / "metrics.csv"
    rows = MetricsFile(file, enabled=False).read() if file.exists() else []
    if len(rows) < 2:
        return None
    figure = charts.curves_figure(rows, trained.get("classes") or [], trained["epoch"], t)
    with named(folder / CURVES):
        save_figure(figure, folder / CURVES, dpi=120)
    return svg_uri(figure)


def _samples_page(task: BaseTask, samples: Samples, names: list[str]) -> dict[str, object]:
    """What samples.html shows of another task's samples."""
    columns = samples.columns
    column = (task.worst or "").partition(" ")[2]
    images = {p: to_pil_image(x, AS_IT_IS) for p, x in samples.images.items()}
    aspect = max((image.width / image.height for image in images.values()), default=1)
    shorter = list(columns)[:SHOWN_COLUMNS]
    pairs = [(x, y) for x, y in task.charts if x in columns and y in columns]
    return {
        "columns": columns,
        "column": column,
        "captions": [name for name in ("true", "predicted", column) if name in columns],
        "worst": task.worst,
        "legend": (inspect.getdoc(task.images) or "").partition("\n")[0],
        "shown": samples.shown,
        "rows": [
            ["sample", *shorter],
            *([names[p], *(columns[c][p] for c in shorter)] for p in samples.shown),
        ],
        "images": {p: image_uri(image, LARGEST_SAMPLE) for p, image in images.items()},
        "card_width": min(1000, round(200 * aspect)),
        "charts": {f"{y} against {x}": charts.scatter_chart(columns, x, y) for x, y in pairs},
    }


def inspection_lines(inspection: dict) -> list[str]:
    """The rates from `inspect_predictions`, in words."""
    lines, confidence = [], 100 * inspection.get("confidence", CONFIDENCE)
    for rule, costs in costs_in_words(inspection).items():
        width = max(map(len, costs))
        lines.append(f"  by {rule}:")
        lines += [f"    {name:<{width}}  {cost}" for name, cost in costs.items()]
    lines.append(f'  ("at most" with {confidence:.3g}% confidence)')
    if error := inspection.get("calibration_error"):
        costs = inspection["at_threshold"]
        lines.append(
            f"  a confidence is off by {error['calibrated']:.2%} on average of the "
            f"{costs['targets'] + costs['others']} samples; the probabilities are by "
            f"{error['before']:.2%}"
        )
    return lines


def speed_line(speed: dict) -> str:
    """The result of `Test.measure_speed`, in words."""
    return (
        f"  on {speed['device']}, {threads_in_words(speed['threads'])}: "
        f"one sample {speed['p50']:.2f} ms (95 % within {speed['p95']:.2f}), "
        f"batches of {speed['batch_size']} {speed['samples_per_second']:,.0f} samples/s"
    )


def write_images(folder: Path, images: dict[str, Image.Image]) -> Path:
    """Write images, {"name.jpg": image}, into `folder`, or folder-2, ... if that has others.

    Nothing is overwritten; a folder with exactly these images is used again. Returns the folder.
    """
    contents = {name: encode(image, "jpeg", 95) for name, image in images.items()}
    for target in numbered(folder):
        if not target.exists():
            break
        if {p.name: p.read_bytes() for p in target.glob("*") if p.is_file()} == contents:
            return target
    target.mkdir(parents=True)
    for name, content in contents.items():
        with named(target / name):
            (target / name).write_bytes(content)
    return target


def _essentials(checkpoint: str, digest: str, config: dict) -> dict[str, str]:
    """The lines that distinguish one tested network from another."""
    lines = {"checkpoint": checkpoint, "digest": digest}
    for section in ("arch", "data_loader", "optimizer", "loss", "lr_scheduler"):
        spec = config.get(section)
        if isinstance(spec, dict):
            arguments = {**spec.get("args", {}), **spec}
            name, _ = arguments.pop("type"), arguments.pop("args", None)
            values = (f"{k} {json.dumps(v, ensure_ascii=False)}" for k, v in arguments.items())
            spec = f"{name} ({', '.join(values)})" if arguments else name
        if spec is not None:
            lines[section] = spec
    return lines | {"epochs": str(config["trainer"]["epochs"])}
