"""From a file to the pixels a person would see, and a sentence where there are none."""

import io
import os
import re

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from utils.errors import UserError

FAR = 2  # times the side that is needed: what is larger is made smaller while it is read


class BadPicture(UserError):  # noqa: N818 (it is the file that is bad)
    """A file that holds no picture that can be read. `str()` names the file and says why, `reason` only why."""

    def __init__(self, path: str, reason: str = ""):
        self.reason = reason
        super().__init__(f"{path}: {reason}" if reason else path)  # a worker's error is made anew from one text


def read_picture(path: str | os.PathLike, channels: int, side: int | None = None) -> Tensor:
    """The picture as uint8 (channels, height, width): 1 channel for grey, 3 for red, green and blue.

    Turned as its EXIF note says; of an animation the first frame; what is transparent lies on white; 16 bits and
    more are scaled down to 8 by their full range. With `side`, one whose shorter side is more than twice as long is
    made so small. In memory each pixel's channels lie together. Raises BadPicture.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
        with Image.open(io.BytesIO(content)) as image:  # judges the size by the header, before decoding
            picture = _decoded_fast(content, image, channels, side)
            if picture is None:
                picture = torch.from_numpy(np.atleast_3d(_decoded(image, channels, side))).permute(2, 0, 1)
    except Exception as error:  # Pillow's decoders raise whatever their formats' authors thought of
        raise BadPicture(str(path), _reason(path, error)) from error
    return picture


def _decoded_fast(content: bytes, image: Image.Image, channels: int, side: int | None) -> Tensor | None:
    """A plain JPEG by torchvision's decoder: the same library as Pillow's, the same pixels, in half the time. Else None."""
    if image.format != "JPEG" or image.mode != ("L" if channels == 1 else "RGB") or _is_far_larger(image.size, side):
        return None
    try:
        from torchvision.io import ImageReadMode, decode_jpeg  # takes seconds to import; to go, with torchcodec in its place

        mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
        return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode, apply_exif_orientation=True)
    except (RuntimeError, ImportError):
        return None  # Pillow will know why, or read it after all


def _decoded(image: Image.Image, channels: int, side: int | None) -> np.ndarray:
    small = _is_far_larger(image.size, side)
    if small:
        image.draft(
            image.mode, _with_side(image.size, side)
        )  # a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, but not smaller than `size`
    image.load()
    image = _in_eight_bits(ImageOps.exif_transpose(image)).convert("L" if channels == 1 else "RGB")
    if small:
        image = image.resize(_with_side(image.size, side), Image.Resampling.BILINEAR)
    return np.array(image)


def _is_far_larger(size: tuple[int, int], side: int | None) -> bool:
    return side is not None and min(size) > FAR * side


def _with_side(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height with the shorter one made `side`."""
    return round(size[0] * side / min(size)), round(size[1] * side / min(size))


def picture_suffixes() -> set[str]:
    """Endings of file names (".jpg") that Pillow has a reader for."""
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """The picture with 8 bits a channel and nothing transparent."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_scaled(np.asarray(image)))
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return image


def _scaled(pixels: np.ndarray) -> np.ndarray:
    # Pillow reads 16 bits as uint16, but from some formats as int32, and 32 bits as int32 or float
    if pixels.dtype.kind == "f":
        full = 1 if pixels.max() <= 1 else 255
    else:
        full = 65_535 if pixels.dtype.itemsize == 2 or pixels.max() <= 65_535 else 2**31 - 1
    return (pixels.clip(0, full) * (255 / full)).round().astype(np.uint8)


def _reason(path: str | os.PathLike, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, Image.DecompressionBombError):
        return f"is too large to be decoded: {re.search('[0-9]+', str(error))[0]} pixels"
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "is empty (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        return "is no picture, or its beginning is damaged"
    if "truncated" in str(error).lower():
        return "is truncated: its end is missing"
    return f"cannot be decoded ({error or type(error).__name__})"
