"""The test's report as one HTML file that needs nothing else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from logger.charts import as_picture, confusion_chart, overlay, picture_uri, threshold_chart
from logger.files import write_text

SHOWN_MISTAKES = 24
SHOWN_SUSPECTS = 12
NOT_METRICS = ("checkpoint", "split", "n", "seconds", "samples_per_second", "speed", "inspection", "per_class")


def shown(predictions: Any) -> list[int]:
    """Positions of the samples that the page shows, where there are pictures of them: mistakes, suspected labels."""
    pictures = [p for p, data in predictions.pictures.items() if data.ndim == 3 and data.shape[0] in (1, 3)]
    suspects = [p for p in predictions.suspects() if p in pictures][:SHOWN_SUSPECTS]
    return list(dict.fromkeys(pictures[:SHOWN_MISTAKES] + suspects))


def write_page(
    path: Path,
    config: Any,
    report: dict,
    predictions: Any,
    names: list[str],
    normalized: dict,
    maps: dict[int, Tensor],
    wrong: Path | None,
) -> None:
    """Write the page to `path`; `wrong` is the folder of wrong pictures, for the other arguments see `report_test`."""
    mistakes, suspects = list(predictions.pictures), predictions.suspects()
    targets, predicted = predictions.targets, predictions.probabilities.argmax(1)
    inspection = report.get("inspection")

    def card(position: int) -> dict:
        data = predictions.pictures.get(position)
        there = data is not None and data.ndim == 3 and data.shape[0] in (1, 3)
        picture = as_picture(data, normalized) if there else None
        heat = maps.get(position)
        probability = predictions.probabilities[position]
        return {
            "name": names[position],
            "true": predictions.classes[targets[position]],
            "predicted": predictions.classes[predicted[position]],
            "p_true": float(probability[targets[position]]),
            "p_predicted": float(probability.max()),
            "picture": picture_uri(picture) if there else None,
            "heat": picture_uri(overlay(picture, heat)) if there and heat is not None else None,
        }

    write_html(
        path,
        "report.html",
        name=config["name"],
        run=config.resume.parent.name,
        report=report,
        metrics={name: value for name, value in report.items() if name not in NOT_METRICS},
        confusion=confusion_chart(predictions.confusion(), predictions.classes),
        inspection=inspection,
        threshold_chart=inspection and _threshold_chart(predictions, inspection),
        mistakes=[card(position) for position in mistakes[:SHOWN_MISTAKES]],
        mistake_count=int((targets != predicted).sum()),
        suspects=[card(position) for position in suspects[:SHOWN_SUSPECTS]],
        suspect_count=len(suspects),
        heat_method=(config.get("heatmap") or {}).get("method", "LayerCAM") if maps else None,
        wrong=wrong and wrong.name,
        essentials=_essentials(config, report),
        config=json.dumps(config.config, indent=2, ensure_ascii=False),
    )


def write_html(path: Path, template: str, **values: Any) -> None:
    """Fill in a template of this folder. What it is filled with counts as text, never as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    write_text(path, environment.get_template(template).render(**values))


def _threshold_chart(predictions: Any, inspection: dict) -> str:
    number = predictions.classes.index(inspection["target"])
    return threshold_chart(np.asarray(predictions.probabilities[:, number]), predictions.targets == number, inspection)


def _essentials(config: Any, report: dict) -> dict[str, str]:
    """The few lines of a configuration that tell one run from another."""

    def said(section: str) -> str:
        spec = config.get(section)
        if not isinstance(spec, dict):
            return str(spec)
        arguments = spec.get("args", {}) | {key: value for key, value in spec.items() if key not in ("type", "args")}
        listed = ", ".join(f"{key} {json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
        return f"{spec['type']} ({listed})" if listed else str(spec["type"])

    sections = [s for s in ("arch", "data_loader", "optimizer", "loss", "lr_scheduler") if config.get(s) is not None]
    epochs = {"epochs": str(config["trainer"]["epochs"])}
    return {"checkpoint": report["checkpoint"]} | {section: said(section) for section in sections} | epochs
