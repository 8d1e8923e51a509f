"""Decode image files to uint8 RGB or grey, with clear errors for broken ones."""

import io
import os
import re

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from utils.errors import UserError, first_line
from utils.files import printable

FAR = 2  # an image is reduced while it is read if it is more than so many times as large as needed


class BadImage(UserError):  # noqa: N818 (the file is bad)
    """A file that cannot be read as an image: `str()` says which and why, `reason` only why."""

    def __init__(self, path: str, reason: str = ""):
        self.reason = reason
        # A worker's error is created again from its text alone.
        super().__init__(f"{path}: {reason}" if reason else path)


def read_image(path: str | os.PathLike, channels: int, side: int | None = None) -> Tensor:
    """The image as uint8 (channels, height, width): 1 channel for grey, 3 for red, green, blue.

    Rotated as its EXIF data says; the first frame of an animation; transparent parts on white;
    16 bits and more scaled to 8 by their full range. With `side`, an image whose shorter side is
    more than twice as long is reduced to it. In memory the channels of a pixel are together.
    Raises BadImage.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
        # open() checks the size in the header before anything is decoded
        with Image.open(io.BytesIO(content)) as image:
            far_larger = side is not None and min(image.size) > FAR * side
            if not far_larger and (decoded := _decode_jpeg(content, image, channels)) is not None:
                return decoded
            return _decode(image, channels, side if far_larger else None)
    except Exception as error:  # Pillow's decoders raise all kinds of errors
        raise BadImage(printable(os.fspath(path)), _reason(path, error)) from error


def _decode_jpeg(content: bytes, image: Image.Image, channels: int) -> Tensor | None:
    """A plain JPEG through torchvision, with Pillow's library and pixels but in half the time."""
    if image.format != "JPEG" or image.mode != ("L" if channels == 1 else "RGB"):
        return None
    try:
        # takes seconds to import; torchcodec will replace it
        from torchvision.io import ImageReadMode, decode_jpeg

        mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return decode_jpeg(data, mode, apply_exif_orientation=True)
    except (RuntimeError, ImportError):
        return None  # Pillow knows why, or can read it


def _decode(image: Image.Image, channels: int, side: int | None) -> Tensor:
    """The image through Pillow, reduced to the shorter side `side` if that is given."""
    if side:
        # a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, but not smaller than the given size
        image.draft(image.mode, _scaled_size(image.size, side))
    image.load()
    image = _to_8_bits(ImageOps.exif_transpose(image)).convert("L" if channels == 1 else "RGB")
    if side:
        image = image.resize(_scaled_size(image.size, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1)


def _scaled_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height with `side` as the shorter one."""
    return round(size[0] * side / min(size)), round(size[1] * side / min(size))


def _to_8_bits(image: Image.Image) -> Image.Image:
    """The image with 8 bits per channel and nothing transparent."""
    if image.mode.startswith(("I", "F")):
        # Pillow reads 16 bits as uint16, from some formats as int32, and 32 bits as int32 or float
        pixels = np.asarray(image)
        small, large = (1, 255) if pixels.dtype.kind == "f" else (65_535, 2**31 - 1)
        maximum = small if pixels.max() <= small else large
        scaled = (pixels.clip(0, maximum) * (255 / maximum)).round()
        return Image.fromarray(scaled.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def image_suffixes() -> set[str]:
    """Suffixes of file names (".jpg") that Pillow can read."""
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def _reason(path: str | os.PathLike, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "cannot be opened (permission denied)"
    if not os.path.exists(path):
        return "is a link to nothing" if os.path.islink(path) else "no such file"
    if isinstance(error, Image.DecompressionBombError):
        return f"is too large to be decoded: {re.search('[0-9]+', str(error))[0]} pixels"
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "is empty (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        return "is not an image, or its beginning is damaged"
    if "truncated" in str(error).lower():
        return "is truncated: its end is missing"
    return f"cannot be decoded ({first_line(error)})"
