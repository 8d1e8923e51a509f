"""What is done to a picture before the network sees it. Write your own transform here, a `torch.nn.Module` of one
uint8 picture (channels, height, width); its name can then stand in a config's `transforms`, beside those of
torchvision.transforms.v2.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import UserError

Size = tuple[int, int]
READ_LARGER = 2  # times what the network sees is what is kept of a picture: resampling twice is then hardly to be seen
IMAGENET = {3: ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), 1: ([0.449], [0.226])}


def imagenet(size: Size) -> dict[str, list[Callable]]:
    """As torchvision's networks were trained: random parts of the picture; for evaluation its middle."""
    from torchvision.transforms import v2

    shorter_side = round(max(size) * 256 / 224)
    return {
        "train": [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()],
        "eval": [v2.Resize(shorter_side), v2.CenterCrop(size)],
    }


def inspection(size: Size) -> dict[str, list[Callable]]:
    """For products before a camera: whole pictures, a little turned, mirrored, in other light, or inverted."""
    from torchvision.transforms import v2

    augmentation = [
        v2.RandomRotation(5),
        v2.ColorJitter(brightness=0.5, hue=0.3),  # a grey picture has no hue: torchvision leaves that as it is
        v2.RandomInvert(),
        v2.RandomHorizontalFlip(),
        v2.RandomVerticalFlip(),
    ]
    return {"train": [v2.Resize(size), *augmentation], "eval": []}


PRESETS = {"imagenet": imagenet, "inspection": inspection, "none": lambda size: {"train": [], "eval": []}}


class Pipeline:
    """Transforms of a uint8 picture; then, always, its size, 0 to 1 as float32, and normalised: float32 (C, H, W).

    Args:
        transforms: functions of a picture that give another
        size: height and width; a picture that has another is resized
        mean: of each channel, pictures taken as 0 to 1; subtracted
        std: of each channel; divided by
    """

    def __init__(self, transforms: Sequence[Callable], size: Size, mean: Tensor, std: Tensor):
        self.transforms, self.size, self.mean, self.std = transforms, size, mean, std
        # A transform of the user's may write into its picture, which may be kept for later epochs.
        self.may_overwrite = not all(_is_torchvisions(transform) for transform in transforms)
        # Of a whole row at once: a loop over the channels alone would be one of three.
        self.scale, self.shift = (v.flatten().repeat(size[1]) for v in (1 / (255 * std), -mean / std))

    def __call__(self, picture: Tensor) -> Tensor:
        return self.together([self.draw(picture)])[0]

    def draw(self, picture: Tensor) -> Tensor:
        """The transforms, and the size: what draws random numbers, and differs from picture to picture."""
        from torchvision.transforms.v2 import functional  # takes seconds to import

        if self.may_overwrite:
            picture = picture.clone()
        for transform in self.transforms:
            picture = QUICK.get(_name(transform), type(transform).__call__)(transform, picture)
        if tuple(picture.shape[-2:]) != self.size:
            picture = functional.resize(picture, list(self.size), antialias=True)
        return picture

    def together(self, pictures: Sequence[Tensor]) -> Tensor:
        """The batch of drawn pictures, float32 and normalised: (N, C, H, W), in memory channels last."""
        from torchvision.transforms.v2 import functional

        batch = torch.empty(len(pictures), *self.size, len(pictures[0]))
        for place, picture in zip(batch, pictures, strict=True):
            if picture.dtype != torch.uint8:  # of the user's making
                picture = functional.to_dtype(picture, torch.float32, scale=True) * 255
            # picture by picture, as one fits into the processor's cache
            values = place.copy_(picture.permute(1, 2, 0)).view(self.size[0], -1)
            torch.addcmul(self.shift, values, self.scale, out=values)
        return batch.permute(0, 3, 1, 2)


def side_to_read(transforms: dict[str, Sequence[Callable]], size: Size) -> int | None:
    """The shorter side that pictures need to be read with; None for all there is.

    That is twice what the first resizing makes of them. Where something else comes first that counts in pixels, a crop
    or a blur, it is to see the whole picture.
    """
    sides = []
    for subset in ("train", "eval"):
        sizing = next((t for t in transforms.get(subset, []) if _name(t) not in SIZELESS), None)
        if sizing is None:
            sides.append(max(size))
        elif _name(sizing) in RESIZING and sizing.size is not None:
            sides.append(max(sizing.size) if isinstance(sizing.size, Sequence) else sizing.size)
        else:
            return None
    return READ_LARGER * max(sides)


RESIZING = ("Resize", "RandomResizedCrop")
SIZELESS = ("RandomHorizontalFlip", "RandomVerticalFlip", "ColorJitter", "RandomInvert", "Grayscale", "RandomGrayscale")


def _flipped(transform: Any, picture: Tensor) -> Tensor:
    """What torchvision's random flips give, without the ways for boxes and masks."""
    return picture if torch.rand(1) >= transform.p else picture.flip(-1 if "Horizontal" in _name(transform) else -2)


def _resized_crop(transform: Any, picture: Tensor) -> Tensor:
    """What torchvision's RandomResizedCrop gives, in two thirds of the time: what is cut out lies in one piece."""
    bilinear = getattr(transform.interpolation, "value", transform.interpolation) == "bilinear"
    if not (bilinear and transform.antialias and picture.dtype == torch.uint8):
        return transform(picture)
    box = transform.make_params([picture])
    part = picture[None, :, box["top"] : box["top"] + box["height"], box["left"] : box["left"] + box["width"]]
    part = part.contiguous(memory_format=torch.channels_last)
    return F.interpolate(part, tuple(transform.size), mode="bilinear", antialias=True)[0]


QUICK = {"RandomResizedCrop": _resized_crop, "RandomHorizontalFlip": _flipped, "RandomVerticalFlip": _flipped}


def _name(transform: Callable) -> str:
    """The class's name, if that is torchvision's own."""
    return type(transform).__name__ if _is_torchvisions(transform) else ""


def _is_torchvisions(transform: Callable) -> bool:
    return type(transform).__module__.startswith("torchvision.")


def given_normalisation(normalize: str | dict, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C, 1, 1), as a config gives them. Raises UserError where they do not fit."""
    mean, std = IMAGENET[channels] if normalize == "imagenet" else (normalize.get("mean", []), normalize.get("std", []))
    if not len(mean) == len(std) == channels or min(std) <= 0:
        raise UserError(
            f'data_loader.args.normalize: "mean" and "std" should have {channels} numbers each, one a channel, std above 0'
        )
    return torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
