"""What is done to a picture before the network sees it. Write your own transform here, a `torch.nn.Module` of one
uint8 picture (channels, height, width); its name can then stand in a config's `transforms`, beside those of
torchvision.transforms.v2.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from utils.errors import UserError

Size = tuple[int, int]
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

    def __call__(self, picture: Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional  # takes seconds to import

        for transform in self.transforms:
            picture = transform(picture)
        if tuple(picture.shape[-2:]) != self.size:
            picture = functional.resize(picture, list(self.size), antialias=True)
        return (functional.to_dtype(picture, torch.float32, scale=True) - self.mean) / self.std


def given_normalisation(normalize: str | dict, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C, 1, 1), as a config gives them. Raises UserError where they do not fit."""
    mean, std = IMAGENET[channels] if normalize == "imagenet" else (normalize.get("mean", []), normalize.get("std", []))
    if not len(mean) == len(std) == channels or min(std) <= 0:
        raise UserError(
            f'data_loader.args.normalize: "mean" and "std" should have {channels} numbers each, one a channel, std above 0'
        )
    return torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
