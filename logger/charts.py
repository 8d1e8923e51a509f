"""Pictures and charts as `data:` URIs, which a page carries within itself."""

import base64
import io
from typing import Any

import numpy as np
from torch import Tensor

LARGEST_SIDE = 320  # pixels, of a picture in a page
SMALL = 96  # below this PNG, as JPEG would blur what few pixels there are
BLUE, RED = "#2a78b8", "#d1495b"
MOST_NUMBERED = 20  # classes whose confusion matrix has room for numbers


def as_picture(data: Tensor, normalized: dict) -> Any:
    """What a network saw (C, H, W), as a PIL picture: mean and std of `normalized` are put back."""
    from PIL import Image

    data = data.detach().float().cpu()
    if normalized.get("mean") is not None and normalized.get("std") is not None:
        mean, std = (data.new_tensor(normalized[key]).view(-1, 1, 1) for key in ("mean", "std"))
        data = data * std + mean
    else:
        data = (data - data.amin()) / (data.amax() - data.amin()).clamp(min=1e-12)
    pixels = (data.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def overlay(picture: Any, heat: Tensor) -> Any:
    """The picture, in grey, under its heat map (H, W) from 0 to 1."""
    from matplotlib import colormaps
    from PIL import Image

    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float32)
    heat = heat.detach().cpu().numpy()
    color = colormaps["turbo"](heat)[..., :3] * 255
    # where there is nothing to see the picture stays as it is
    strength = 0.15 + 0.5 * heat[..., None]
    return Image.fromarray((grey * (1 - strength) + color * strength).round().astype(np.uint8))


def picture_uri(picture: Any) -> str:
    """A PIL picture as a data: URI, made smaller where it is large."""
    picture = picture.copy()
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    kind = "png" if max(picture.size) < SMALL else "jpeg"
    file = io.BytesIO()
    picture.save(file, kind, quality=85)
    return _uri(file, f"image/{kind}")


def confusion_chart(confusion: np.ndarray, classes: list[str]) -> str:
    """How many of each true class (a row) were taken for which (a column), coloured by the share of the row."""
    count = len(classes)
    side = min(9.0, max(3.0, 1.2 + 0.42 * count))
    figure = _figure(side, side)
    axes = figure.add_subplot()
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if count <= MOST_NUMBERED:
        for row, column in np.ndindex(*confusion.shape):
            ink = "white" if share[row, column] > 0.5 else "black" if confusion[row, column] else "silver"
            axes.text(column, row, confusion[row, column], ha="center", va="center", color=ink)
    step = -(-count // 40)  # more names than that would run into one another
    shown = np.arange(0, count, step)
    names = [name if len(name) <= 18 else f"{name[:17]}…" for name in classes[::step]]
    axes.set_xticks(shown, names, rotation=45, ha="right")
    axes.set_yticks(shown, names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    return _svg(figure)


def threshold_chart(probability: np.ndarray, is_target: np.ndarray, chosen: dict) -> str:
    """How likely the target class seemed, for samples that are of it and for the others, and the threshold."""
    figure = _figure(5.4, 2.8)
    axes = figure.add_subplot()
    bins = np.linspace(0, 1, 41)
    axes.hist(probability[~is_target], bins, alpha=0.7, color=BLUE, label=f"not {chosen['target']}")
    axes.hist(probability[is_target], bins, alpha=0.7, color=RED, label=chosen["target"])
    axes.axvline(chosen["threshold"], color="black", linestyle="--", label=f"threshold {chosen['threshold']:.4g}")
    axes.set_yscale("symlog", linthresh=10)
    axes.set_xlabel(f"probability of {chosen['target']}")
    axes.set_ylabel("samples")
    axes.legend()
    return _svg(figure)


def comparison_chart(rows: list[dict]) -> str:
    """An SVG picture of what `exporter.compare` found: latency, size and accuracy of each file."""
    figure = _figure(9, 1.2 + 0.45 * len(rows))
    panels = {"p50_ms": "ms, one sample", "megabytes": "MB", "accuracy": "accuracy"}
    for axes, (key, label) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        bars = axes.barh([row["file"] for row in rows], [row[key] or 0 for row in rows], color=BLUE)
        axes.bar_label(bars, ["" if row[key] is None else f"{row[key]:.4g}" for row in rows], padding=3)
        axes.margins(x=0.25)
        axes.set_xlabel(label)
    axes.invert_yaxis()  # the first on top
    return _svg_file(figure).getvalue().decode()


def tradeoff_chart(
    rows: list[dict], shares: list[float | None], label: str, best: int, goal: float | None, least: float | None
) -> str:
    """Accuracy of a pruned network's steps against what is left of it, at `shares`; and what each cut had left of it.

    Args:
        rows: see `logger.report_pruning`
        shares: one for each row
        label: what they are shares of
        best: the recommended step
        goal: the share that is the aim, where one is
        least: the accuracy that is allowed, where that is the aim
    """
    figure = _figure(5.4, 4.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    left = 100 * np.array(shares, dtype=float)
    before, after = (np.array([row[key] for row in rows], dtype=float) for key in ("accuracy_before", "accuracy"))
    upper.plot(left, after, "o-", color=BLUE, label="after training")
    upper.plot(left[best], after[best], "o", color="#17663a", markersize=9, label="recommended")
    lower.vlines(left, before, after, color="silver", zorder=1)
    lower.plot(left, after, "o", color=BLUE)
    lower.plot(left, before, "o", color=RED, markerfacecolor="white", label="after the cut")
    for row, x, y in zip(rows, left, after, strict=True):
        if np.isfinite(x + y):
            upper.annotate(row["step"], (x, y), (0, 7), textcoords="offset points", ha="center")
    if least is not None:
        upper.axhline(least, color="grey", linestyle="--", zorder=0, label="aim")
    for axes in (upper, lower):
        if goal is not None:
            axes.axvline(100 * goal, color="grey", linestyle="--", zorder=0, label="aim" if axes is upper else None)
        axes.ticklabel_format(useOffset=False)
        axes.margins(0.08, 0.15)
        axes.set_ylabel("accuracy")
        axes.spines[["top", "right"]].set_visible(False)
    lower.set_xlabel(f"% of {label}")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, columnspacing=1.2, handletextpad=0.5)
    return _svg(figure)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Any) -> str:
    return _uri(_svg_file(figure), "image/svg+xml")


def _svg_file(figure: Any) -> io.BytesIO:
    import warnings

    from matplotlib import rc_context

    file = io.BytesIO()
    # Text stays text: the reader's own fonts have the characters, Japanese ones say, that matplotlib's lacks.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "kata"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file


def _uri(file: io.BytesIO, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
