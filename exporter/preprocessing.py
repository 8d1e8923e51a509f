"""From a decoded image to the decision, as parts of an exported network."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from data_loader.transforms import Pipeline, Transform
from trainer.decisions import calibrated, class_number, decided
from utils.errors import UserError

GREY = 19595, 38470, 7471  # of 65536: red, green, blue in Pillow's conversion, ITU-R 601-2
UNSURE = -1
THRESHOLDS = "threshold", "sure_threshold", "temperature"  # numbers in the graph


class ImagePreparation(nn.Module):
    """A data loader's evaluation transforms, without its normalisation: uint8 (N, 3, H, W) of any
    size to uint8 (N, C, height, width).

    Args:
        pipeline: of the data loader, for evaluation; its transforms take uint8 (..., C, H, W)
        channels: 1 to convert the images to grey

    Raises UserError if a transform of torchvision resizes in another way.
    """

    def __init__(self, pipeline: Pipeline, channels: int):
        super().__init__()
        self.size, self.channels = pipeline.size, channels
        self.steps = [_exportable(transform) for transform in pipeline.transforms]

    def forward(self, images: Tensor) -> Tensor:
        if self.channels == 1:
            weights = torch.tensor(GREY, dtype=torch.float32, device=images.device)
            grey = (images.float() * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)
            images = ((grey + 2**15) / 2**16).floor().to(torch.uint8)
        for step in self.steps:
            images = step(images)
        return resize(images, *self.size)


class Decision(nn.Module):
    """The number of the class that is decided on, -1 if a person is to look, and how often such an
    answer is right by the validation data: from probabilities (N, classes), both (N,).

    Args:
        settings: the file's metadata "decision", see `baked`
        classes: the names of all classes
    """

    def __init__(self, settings: dict, classes: list[str]):
        super().__init__()
        target = settings.get("target")
        self.target = None if target is None else class_number(target, classes)
        for name in THRESHOLDS:
            self.register_buffer(name, torch.tensor(settings[name]))

    def forward(self, probability: Tensor) -> tuple[Tensor, Tensor]:
        number = probability.argmax(1)
        if self.target is not None:
            number = decided(probability, self.target, self.threshold)
        confidence = calibrated(probability, self.temperature).gather(1, number[:, None])[:, 0]
        if self.target is not None:
            unsure = (number == self.target) & (probability[:, self.target] < self.sure_threshold)
            number = number.masked_fill(unsure, UNSURE)
        return number, confidence


def baked(inspection: dict | None) -> dict[str, str | float | None]:
    """What a file decides by: "target", None for the likeliest class, and the THRESHOLDS.

    `inspection` is what `tester.inspection.find_threshold` returned.
    """
    found = {"target": None, "threshold": 0.0, "temperature": 1.0} | (inspection or {})
    found = {"sure_threshold": found["threshold"]} | found
    return {name: found[name] for name in ("target", *THRESHOLDS)}


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Resize uint8 (N, C, H, W) as torch does on processors, in operations that every runtime has:
    antialiased, first along rows, then along columns, with weights of 15 bits, each time rounded.

    The same to the last bit up to four times the wanted size; beyond, 1 of 10,000 values may differ
    by 1, as sums then need more than the 24 bits of float32.
    """
    shares, unit = _weights(images.shape[3], width)
    wide = (images.float() @ shares.T / unit + 0.5).floor()
    shares, unit = _weights(images.shape[2], height)
    return (shares @ wide / unit + 0.5).floor().to(torch.uint8)


def _weights(side: int, size: int) -> tuple[Tensor, Tensor]:
    """How much each of `side` pixels counts in each of `size`, (size, side) whole numbers, and what
    they add up to: triangles around the places of the new pixels.
    """
    distance = (2 * torch.arange(side) + 1) * size - ((2 * torch.arange(size) + 1) * side)[:, None]
    overlap = (2 * torch.sym_max(side, size) - distance.abs()).clamp(min=0).double()
    shares = overlap / overlap.sum(1, keepdim=True)
    bits = ((2**15 - 0.5) / shares.max()).log2().floor().clamp(max=22)
    unit = torch.exp2(bits)
    return (shares * unit + 0.5).floor().float(), unit.float()


class _Resize(nn.Module):
    """torchvision's Resize."""

    def __init__(self, size: Sequence[int]):
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        if len(self.size) == 2:
            return resize(images, *self.size)
        height, width = images.shape[-2:]
        # as one expression, as the size is only known when the file is run
        [side] = self.size
        tall = torch.sym_max(side, side * height // width)
        return resize(images, tall, torch.sym_max(side, side * width // height))


class _CenterCrop(nn.Module):
    """torchvision's CenterCrop, of images that are at least as large."""

    def __init__(self, size: Sequence[int]):
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        starts = []
        for side, wanted in zip(images.shape[-2:], self.size, strict=True):
            half, odd = (side - wanted) // 2, (side - wanted) % 2
            starts.append(half + odd * (half % 2))  # half to even, as Python rounds
        (top, left), (height, width) = starts, self.size
        return images[..., top : top + height, left : left + width]


def _exportable(transform: Transform) -> Transform:
    """A transform as torch can export it; those that are not torchvision's are left alone."""
    cls = type(transform)
    if not cls.__module__.startswith("torchvision."):
        return transform
    if cls.__name__ == "CenterCrop":
        return _CenterCrop(transform.size)
    if cls.__name__ != "Resize":
        return transform
    way = getattr(transform.interpolation, "value", transform.interpolation)
    if way != "bilinear" or not transform.antialias or transform.max_size is not None:
        raise UserError(
            f'exporter.args.preprocess: "image" cannot have {transform} in the file, only Resize '
            "with bilinear interpolation, antialias and without max_size"
        )
    return _Resize(transform.size)
