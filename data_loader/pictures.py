from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError


class BadPicture(UserError):  # noqa: N818 (it is the picture that is bad)
    """A file that is no readable picture."""


def read_picture(path: str | Path, channels: int = 3) -> Tensor:
    """The picture as uint8 (channels, height, width). Raises BadPicture."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            pixels = np.array(picture.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError) as error:
        raise BadPicture(f"{path} cannot be read as a picture: {error}") from None
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)
