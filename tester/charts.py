"""Charts and overlays of the test report."""

import numpy as np
from PIL import Image
from torch import Tensor

from logger.charts import BLUE, RED, new_figure, svg_uri
from tester.predictions import Predictions

MOST_POINTS = 2000  # of a chart whose points are drawn one by one
MOST_NUMBERED = 20  # classes whose confusion matrix has space for numbers
MOST_NAMED = 40  # class names along an axis before they overlap


def overlay(image: Image.Image, heat: Tensor) -> Image.Image:
    """The image, in grey, under its heat map (H, W) of values from 0 to 1."""
    from matplotlib import colormaps

    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32)
    heat = heat.detach().cpu().numpy()
    color = colormaps["turbo"](heat)[..., :3] * 255
    strength = 0.15 + 0.5 * heat[..., None]  # where there is no heat the image stays visible
    return Image.fromarray((grey * (1 - strength) + color * strength).round().astype(np.uint8))


def confusion_chart(confusion: np.ndarray, classes: list[str]) -> str:
    """The confusion matrix (rows: true, columns: predicted), colored by the share of the row."""
    side = min(9.0, max(3.0, 1.2 + 0.42 * len(classes)))
    figure = new_figure(side, side)
    axes = figure.add_subplot()
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= MOST_NUMBERED:
        for (row, column), count in np.ndenumerate(confusion):
            color = "white" if share[row, column] > 0.5 else "black" if count else "silver"
            axes.text(column, row, count, ha="center", va="center", color=color)
    step = -(-len(classes) // MOST_NAMED)
    ticks = np.arange(0, len(classes), step)
    names = [name if len(name) <= 18 else f"{name[:17]}…" for name in classes[::step]]
    axes.set_xticks(ticks, names, rotation=45, ha="right")
    axes.set_yticks(ticks, names)
    axes.set(xlabel="predicted class", ylabel="true class")
    return svg_uri(figure)


def scatter_chart(columns: dict[str, list], x: str, y: str) -> str:
    """Two columns as points; with the diagonal, where true and predicted values are equal."""
    figure = new_figure(5.4, 4.2)
    axes = figure.add_subplot()
    many = len(columns[x]) > MOST_POINTS
    axes.scatter(columns[x], columns[y], s=12, alpha=0.6, color=BLUE, lw=0, rasterized=many)
    if (x, y) == ("true", "predicted"):
        low, high = min(columns[x] + columns[y]), max(columns[x] + columns[y])
        axes.plot([low, high], [low, high], color="grey", linestyle="--", linewidth=1)
    axes.set(xlabel=x, ylabel=y)
    return svg_uri(figure)


def threshold_chart(predictions: Predictions, inspection: dict) -> str:
    """Histograms of the target class's probability: for its samples, and for the others."""
    target, threshold = inspection["target"], inspection["threshold"]
    probability, is_target = predictions.for_class(target)
    figure = new_figure(5.4, 2.8)
    axes = figure.add_subplot()
    bins = np.linspace(0, 1, 41)
    axes.hist(probability[~is_target], bins, alpha=0.7, color=BLUE, label=f"not {target}")
    axes.hist(probability[is_target], bins, alpha=0.7, color=RED, label=target)
    axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.4g}")
    if (sure := inspection.get("sure_threshold", threshold)) > threshold:
        axes.axvspan(threshold, sure, color="grey", alpha=0.2, label="unsure")
    axes.set_yscale("symlog", linthresh=10)
    axes.set(xlabel=f"probability of {target}", ylabel="samples")
    axes.legend()
    return svg_uri(figure)
