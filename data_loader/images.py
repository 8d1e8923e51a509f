"""Decode image files to uint8 RGB or grey, with clear errors for broken ones."""

import io
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from utils.errors import UserError, first_line
from utils.files import printable

# What values of more than 8 bits are scaled from, see `examine`
Range = list[float] | Literal["data", "file"] | None
BITS = 8, 10, 12, 14, 16  # of cameras
NEAR = 0.05  # floats beyond 0..1 by at most this are rounding and overshoot
FAR = 2  # an image is reduced while it is read if it is more than so many times as large as needed


class BadImage(UserError):  # noqa: N818 (the file is bad)
    """A file that cannot be read as an image: `str()` says which and why, `reason` only why.

    `lasting` is False if the same file may be readable the next time.
    """

    def __init__(self, path: str, reason: str = "", lasting: bool = True):
        self.reason, self.lasting = reason, lasting
        # A worker's error is created again from its text alone.
        super().__init__(f"{path}: {reason}" if reason else path)


class Member(str):
    """An image in a tar file: as a text, its name there.

    Args:
        shard: the tar file
        name: of the image
        offset, size: where its bytes are
    """

    __slots__ = ("offset", "shard", "size")

    def __new__(cls, shard: Path, name: str, offset: int, size: int) -> "Member":
        member = super().__new__(cls, shard / name)
        member.shard, member.offset, member.size = shard, offset, size
        return member

    def __reduce__(self) -> tuple[type, tuple]:
        return Member, (self.shard, str(self)[len(str(self.shard)) + 1 :], self.offset, self.size)


def read_bytes(path: str | os.PathLike) -> bytes:
    """The content of an image file, which may be in a tar file."""
    if not isinstance(path, Member):
        with open(path, "rb") as file:
            return file.read()
    with open(path.shard, "rb") as file:
        file.seek(path.offset)
        return file.read(path.size)


class DeepImage(Exception):  # noqa: N818
    """An image has more than 8 bits per channel: its lowest and its highest value."""


def read_image(
    path: str | os.PathLike, channels: int, side: int | None = None, pixel_range: Range = "file"
) -> Tensor:
    """The image as uint8 (channels, height, width): 1 channel for grey, 3 for red, green, blue.

    Rotated as its EXIF data says; the first frame of an animation; transparent parts on white; more
    than 8 bits scaled from `pixel_range`. With `side`, an image whose shorter side is more than
    twice as long is reduced to it. In memory the channels of a pixel are together. Raises BadImage.
    """
    return examine(path, channels, side, pixel_range)[0]


def examine(
    path: str | os.PathLike, channels: int, side: int | None, pixel_range: Range
) -> tuple[Tensor, list[float] | None]:
    """As `read_image`, with the lowest and the highest value if there are more than 8 bits.

    These values are scaled from `pixel_range` to 0..255. "file" takes the range of their type, for
    floats 0..1 or 0..255; with None they are not allowed; with "data" they raise DeepImage.
    """
    try:
        content = read_bytes(path)
        # open() checks the size in the header before anything is decoded
        with Image.open(io.BytesIO(content)) as image:
            far_larger = side is not None and min(image.size) > FAR * side
            if not far_larger and (decoded := _decode_jpeg(content, image, channels)) is not None:
                return decoded, None
            return _decode(image, channels, side if far_larger else None, pixel_range)
    except DeepImage:
        raise
    except Exception as error:  # Pillow's decoders raise all kinds of errors
        passing = isinstance(error, UserError | MemoryError) or getattr(error, "errno", None)
        reason = _reason(path, error)
        raise BadImage(printable(os.fspath(path)), reason, not passing) from error


def common_range(values: Sequence[Sequence[float]]) -> Range:
    """What to scale a data set's values from: their [lowest, highest] of each image are given.

    Integers: the 8, 10, 12, 14 or 16 bits that hold all. Floats: 0..1 if all are near it. Else from
    the lowest to the highest. None if there are no values.
    """
    if not values:
        return None
    low, high = min(pair[0] for pair in values), max(pair[1] for pair in values)
    if any(isinstance(value, float) for pair in values for value in pair):
        if low >= -NEAR and high <= 1 + NEAR:
            return [0.0, 1.0]
    elif low >= 0 and high < 2**16:
        return [0.0, next(2.0**bits for bits in BITS if high < 2**bits) - 1]
    return [float(low), float(high if high > low else low + 1)]


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


def _decode(
    image: Image.Image, channels: int, side: int | None, pixel_range: Range
) -> tuple[Tensor, list[float] | None]:
    """The image through Pillow, reduced to the shorter side `side` if that is given."""
    if side:
        # a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, but not smaller than the given size
        image.draft(image.mode, _scaled_size(image.size, side))
    image.load()
    image, values = ImageOps.exif_transpose(image), None
    if image.mode.startswith(("I", "F")):
        image, values = _to_8_bits(np.asarray(image), pixel_range)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if side:
        image = image.resize(_scaled_size(image.size, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1), values


def _scaled_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height with `side` as the shorter one."""
    return round(size[0] * side / min(size)), round(size[1] * side / min(size))


def _to_8_bits(pixels: np.ndarray, pixel_range: Range) -> tuple[Image.Image, list[float]]:
    """The image of values scaled from `pixel_range`, and the lowest and the highest of them.

    Pillow reads 16 bits as uint16, from some formats as int32, and 32 bits as int32 or float.
    """
    if not np.isfinite(pixels).all():
        raise ValueError("it contains NaN or infinite values")
    values = [pixels.min().item(), pixels.max().item()]
    if pixel_range == "data":
        raise DeepImage(*values)
    if pixel_range is None:
        raise UserError("has more than 8 bits, unlike the training images; set pixel_range")
    low, high = (0, 1) if pixels.dtype.kind == "f" else (0, 65_535)
    if pixel_range != "file":
        low, high = pixel_range
    elif values[1] > high:
        high = 255 if pixels.dtype.kind == "f" else 2**31 - 1
    scaled = ((pixels.clip(low, high) - low) * (255 / (high - low))).round()
    return Image.fromarray(scaled.astype(np.uint8)), values


def size_as_read(path: str | os.PathLike, channels: int, side: int | None) -> int:
    """Bytes of what `read_image` makes of a file, by its header alone; 0 if it cannot be read."""
    try:
        with Image.open(io.BytesIO(read_bytes(path))) as image:
            size = image.size
    except Exception:  # as for `examine`, which says what is wrong
        return 0
    if side is not None and min(size) > FAR * side:
        size = _scaled_size(size, side)
    return channels * math.prod(size)


def image_suffixes() -> set[str]:
    """Suffixes of file names (".jpg") that Pillow can read."""
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def _reason(path: str | os.PathLike, error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, PermissionError):
        return "cannot be opened (permission denied)"
    if isinstance(path, Member):
        path = path.shard
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
