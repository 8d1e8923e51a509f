"""The result of a test: a table, result.json and, for a classifier, an HTML page, the predictions
and the images of mistakes."""

import json
import logging
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from logger.charts import encode, image_uri, to_pil_image
from logger.files import file_names, threads_in_words, write_csv
from logger.page import write_html
from tester.charts import confusion_chart, overlay, threshold_chart
from tester.predictions import Predictions, probability_cells, probability_columns
from tester.trained import Test
from utils.checkpoint import origin_beside, output_dir
from utils.files import numbered, write_text

SHOWN_MISTAKES, SHOWN_SUSPECTS = 24, 12  # in the page


def report_test(
    test: Test,
    predictions: Predictions,
    metrics: dict[str, float],
    seconds: float,
    inspection: dict | None,
    maps: dict[int, Tensor],
    speed: dict | None,
) -> None:
    """Log a test's result as a table, and write it into the checkpoint's `test_folder`.

    Args:
        metrics: the loss and the metrics
        seconds: duration of the pass over the samples
        inspection: from `tester.inspection.inspect`
        maps: heat maps (H, W) by position
        speed: from `Test.measure_speed`
    """
    checkpoint, config, count = test.config.resume, test.config.config, len(test.loader.dataset)
    suffix = "" if test.split == "test" else f"_{test.split}"
    report = {"split": test.split, "n": count, **metrics}
    report |= {"seconds": seconds, "samples_per_second": count / seconds}
    width = max(map(len, report))
    lines = [f"{checkpoint}"]
    for name, value in report.items():
        lines.append(f"  {name:<{width}}  {f'{value:.4f}' if isinstance(value, float) else value}")
    folder = test_folder(checkpoint)
    origin = origin_beside(folder / "result.json", checkpoint, test.trained)
    report = {"checkpoint": checkpoint.name, "origin": origin, **report}
    if speed:
        report["speed"] = speed
        lines.append(speed_line(speed))
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"result{suffix}.json"]
    if predictions.is_classification:
        if inspection:
            report["inspection"] = inspection
            lines += inspection_lines(inspection)
        report["per_class"] = predictions.per_class()
        names = test.loader.paths or [str(number) for number in range(count)]
        classes = np.array(predictions.classes)
        true, predicted = classes[predictions.targets], classes[predictions.predicted]
        written += [folder / f"predictions{suffix}.csv", folder / f"report{suffix}.html"]
        columns = zip(names, true, predicted, predictions.probabilities, strict=True)
        header = ["sample", "true", "predicted", *probability_columns(predictions.classes)]
        write_csv(written[1], header, ([*row, *probability_cells(ps)] for *row, ps in columns))
        images = {p: to_pil_image(x, test.loader.input) for p, x in predictions.images.items()}
        stems = (f"{true[p]}_to_{predicted[p]}_{Path(names[p]).stem}" for p in images)
        wrong_images = dict(zip(file_names(stems, ".jpg"), images.values(), strict=True))
        wrong = write_images(folder / f"wrong_images{suffix}", wrong_images) if images else None
        written += [wrong] if wrong else []
        mistakes, suspects = shown_positions(predictions)
        write_html(
            written[2],
            Path(__file__).with_name("report.html"),
            name=config["name"],
            run=checkpoint.parent.name,
            report=report,
            metrics=metrics,
            predictions=predictions,
            names=names,
            mistakes=mistakes,
            mistake_count=int((predictions.targets != predictions.predicted).sum()),
            suspects=suspects,
            images={p: image_uri(images[p]) for p in mistakes + suspects if p in images},
            maps={p: image_uri(overlay(images[p], heat)) for p, heat in maps.items()},
            heat_method=config.get("heatmap", {}).get("method", "LayerCAM") if maps else None,
            confusion=confusion_chart(predictions.confusion(), predictions.classes),
            inspection=inspection,
            threshold_chart=inspection and threshold_chart(predictions, inspection),
            wrong=wrong and wrong.name,
            essentials=_essentials(checkpoint.name, origin["digest"], config),
            config=json.dumps(config, indent=2, ensure_ascii=False),
        )
    write_text(written[0], json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    logging.getLogger("test").info("\n".join([*lines, *(f"written: {path}" for path in written)]))


def test_folder(tested: Path) -> Path:
    """The folder for results about a checkpoint: test/ beside it; test/<name>/ for another file."""
    return output_dir(tested) / "test" / ("" if tested.suffix in (".pth", ".pt") else tested.name)


def shown_positions(predictions: Predictions) -> tuple[list[int], list[int]]:
    """Positions of the mistakes and of the suspected labels that the page shows."""
    return predictions.mistakes[:SHOWN_MISTAKES], predictions.suspects()[:SHOWN_SUSPECTS]


def inspection_lines(inspection: dict) -> list[str]:
    """The rates from `tester.inspection.inspect`, in words."""
    target = inspection["target"]
    rules = {
        f"at p({target}) >= {inspection['threshold']:.4g}": inspection["at_threshold"],
        "by the likeliest class": inspection["at_likeliest"],
    }
    lines = []
    for rule, rates in rules.items():
        shares = ["(no samples)" if rate is None else f"{rate:.2%}" for rate in rates.values()]
        lines.append(f"  {rule}: missed {target} {shares[0]}, false {target} {shares[1]}")
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
