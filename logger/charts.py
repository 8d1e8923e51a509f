"""Images and charts as `data:` URIs, so that an HTML page carries them within itself."""

import base64
import io
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING

from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # takes seconds to import

LARGEST_SIDE = 320  # pixels of an image in a page
SMALL = 96  # smaller images are PNG: JPEG would blur their few pixels
BLUE, RED = "#2a78b8", "#d1495b"


def to_pil_image(data: Tensor, normalization: dict) -> Image.Image:
    """What a network saw, (C, H, W) with 1 or 3 channels, as an image.

    The mean and std in `normalization` are undone; without them the values are scaled to 0 to 255.
    """
    data = data.detach().float().cpu()
    if normalization.get("mean") is not None and normalization.get("std") is not None:
        mean, std = (data.new_tensor(normalization[key]).view(-1, 1, 1) for key in ("mean", "std"))
        data = data * std + mean
    else:
        data = (data - data.amin()) / (data.amax() - data.amin()).clamp(min=1e-12)
    pixels = (data.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def encode(image: Image.Image, image_format: str, quality: int) -> bytes:
    """The content of an image file: "jpeg" or "png", which ignores the quality (1 to 95)."""
    file = io.BytesIO()
    image.save(file, image_format, quality=quality)
    return file.getvalue()


def image_uri(image: Image.Image, largest: int = LARGEST_SIDE) -> str:
    """The image as a data: URI, scaled down if a side has more than `largest` pixels."""
    image = image.copy()
    image.thumbnail((largest, largest))
    image_format = "png" if max(image.size) < SMALL else "jpeg"
    return _data_uri(encode(image, image_format, 85), f"image/{image_format}")


def new_figure(width: float, height: float) -> "Figure":
    """An empty matplotlib figure, in inches; it needs no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def svg_uri(figure: "Figure") -> str:
    """The figure as a data: URI."""
    return _data_uri(svg_text(figure).encode(), "image/svg+xml")


def svg_text(figure: "Figure") -> str:
    """The figure as the text of an SVG file; the same figure gives the same text."""
    file = io.StringIO()
    save_figure(figure, file, format="svg", metadata={"Date": None})
    return file.getvalue()


def save_figure(figure: "Figure", file: Path | IO, **options: object) -> None:
    """Save a figure; `options` are those of savefig."""
    from matplotlib import rc_context

    # Text stays text: the reader's fonts have characters (Japanese, say) that matplotlib's lacks.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "chart"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(file, **options)


def _data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
