"""What happens to an image before the network sees it.

Write your own transform here: a `torch.nn.Module` that takes one uint8 image (channels, height,
width). A config's `transforms` can then name it, beside those of torchvision.transforms.v2.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_loader.images import read_image
from utils.errors import UserError

Size = tuple[int, int]
Transform = Callable[[Tensor], Tensor]
# images are kept at twice the network's size: resizing twice is then hardly visible
READ_LARGER = 2
IMAGENET = {3: ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), 1: ([0.449], [0.226])}
FLIPS = ("RandomHorizontalFlip", "RandomVerticalFlip")
SIZELESS = (*FLIPS, "ColorJitter", "RandomInvert", "Grayscale", "RandomGrayscale")


def imagenet(size: Size) -> dict[str, list[Transform]]:
    """As torchvision's networks were trained: random crops; the centre for evaluation."""
    from torchvision.transforms import v2

    shorter_side = round(max(size) * 256 / 224)
    evaluation = [v2.Resize(shorter_side), v2.CenterCrop(size)]
    return {"train": [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()], "eval": evaluation}


def inspection(size: Size) -> dict[str, list[Transform]]:
    """For products in front of a camera: whole images, rotated, flipped, other light, inverted."""
    from torchvision.transforms import v2

    # torchvision leaves the hue of grey images as it is
    light = [v2.ColorJitter(brightness=0.5, hue=0.3), v2.RandomInvert()]
    flips = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
    return {"train": [v2.Resize(size), v2.RandomRotation(5), *light, *flips], "eval": []}


RESIZING_ONLY = {"train": [], "eval": []}
PRESETS = {"imagenet": imagenet, "inspection": inspection, "none": lambda size: RESIZING_ONLY}


class CropRegion(nn.Module):
    """Cuts out a part of the image, where the product is.

    Args:
        region: [left, top, right, bottom] as shares of width and height, each from 0 to 1
    """

    def __init__(self, region: tuple[float, float, float, float]):
        super().__init__()
        self.region = _checked_region(region)

    def forward(self, image: Tensor) -> Tensor:
        return _cut_out(image, self.region)


class KeepRegions(nn.Module):
    """Blackens all but some parts of the image.

    Args:
        regions: [[left, top, right, bottom], ...] as shares of width and height, each from 0 to 1
        mask: a grey image in place of regions; what is darker than half is blackened
    """

    def __init__(
        self,
        regions: list[tuple[float, float, float, float]] | None = None,
        mask: str | None = None,
    ):
        super().__init__()
        if (regions is None) == (mask is None):
            raise UserError("transforms: KeepRegions takes regions or mask, one of the two")
        self.regions = [_checked_region(region) for region in regions or []]
        self.mask = None if mask is None else read_image(mask, channels=1)

    def forward(self, image: Tensor) -> Tensor:
        if self.mask is not None:
            return image * (_resized(self.mask, image) > 127)
        kept = torch.zeros_like(image)
        for region in self.regions:
            _cut_out(kept, region).copy_(_cut_out(image, region))
        return kept


class SubtractReference(nn.Module):
    """What differs from a reference image, the same for each: background, fixture, shading. Grey
    128 means no difference.

    Args:
        reference: the file, taken like the images
        gain: how strongly differences show
    """

    def __init__(self, reference: str, gain: float = 1.0):
        super().__init__()
        self.gain = gain
        self.references = {channels: read_image(reference, channels) for channels in (1, 3)}

    def forward(self, image: Tensor) -> Tensor:
        reference = _resized(self.references[len(image)], image).float()
        return (128 + self.gain * (image - reference)).round().clamp(0, 255).to(torch.uint8)


class LocalContrast(nn.Module):
    """Makes faint structures visible in dark and in bright places alike: contrast limited adaptive
    histogram equalisation (CLAHE), Zuiderveld 1994, doi:10.1016/B978-0-12-336156-1.50061-6.

    Args:
        clip: how many times as frequent as on average a brightness may be before it is cut; the
            larger, the more contrast, and noise
        tiles: the image is divided into tiles x tiles parts, each equalised by itself
    """

    def __init__(self, clip: float = 2.0, tiles: int = 8):
        super().__init__()
        self.clip, self.tiles = clip, tiles

    def forward(self, image: Tensor) -> Tensor:
        bottom, right = (-side % self.tiles for side in image.shape[-2:])
        padded = F.pad(image.float()[None], (0, right, 0, bottom), mode="reflect")[0]
        tables = self._tables(padded.long())
        # Each value is looked up between the four nearest tiles: in a volume of 256 brightnesses
        # x tiles x tiles, whose corners are at -1 and 1 on each axis.
        sides = zip(image.shape[-2:], padded.shape[-2:], strict=True)
        y, x = (2 * torch.arange(side) / whole - 1 for side, whole in sides)
        brightness = (2 * image.float() + 1) / 256 - 1
        grid = torch.stack(torch.broadcast_tensors(x, y[:, None], brightness), -1)
        options = {"padding_mode": "border", "align_corners": False}
        found = F.grid_sample(tables[:, None], grid[:, None], **options)[:, 0, 0]
        return found.round().to(torch.uint8)

    def _tables(self, image: Tensor) -> Tensor:
        """What each tile makes of each brightness: (channels, 256, tiles, tiles)."""
        rows, columns = (side // self.tiles for side in image.shape[-2:])
        size = rows * columns
        parts = image.unfold(1, rows, rows).unfold(2, columns, columns).flatten(3)
        counts = torch.zeros(*parts.shape[:3], 256).scatter_add_(3, parts, torch.ones(parts.shape))
        most = max(1, int(self.clip * size / 256))
        excess = (counts - most).clamp(min=0).sum(3, keepdim=True)
        counts = counts.clamp(max=most) + (excess / 256).floor()
        left_over = (excess % 256).long()  # spread evenly
        step = (256 // left_over.clamp(min=1)).clamp(min=1)
        place = torch.arange(256).expand_as(counts)
        counts += ((place % step == 0) & (place // step < left_over)).float()
        return (counts.cumsum(3) * (255 / size)).round().clamp(max=255).permute(0, 3, 1, 2)


class Pipeline:
    """Transforms of a uint8 image; then always resizing, scaling to 0..1 and normalisation.

    Called with an image (channels, height, width), it returns float32 (C, H, W).

    Args:
        transforms: functions of an image that return an image
        size: height and width; an image of another size is resized
        mean: of each channel, for images scaled to 0..1; subtracted
        std: of each channel; divided by
    """

    def __init__(self, transforms: Sequence[Transform], size: Size, mean: Tensor, std: Tensor):
        self.transforms, self.size, self.mean, self.std = transforms, size, mean, std
        # A user's transform may write to its image, which may be kept for later epochs.
        self.may_overwrite = not all(_name(transform) for transform in transforms)
        # For a whole row of pixels at once: three numbers per channel would be a slow inner loop.
        self.scale = (1 / (255 * std)).flatten().repeat(size[1])
        self.shift = (-mean / std).flatten().repeat(size[1])
        self._constants = [(-mean / std)[None], (1 / (255 * std))[None]]

    def __call__(self, image: Tensor) -> Tensor:
        return self.collate([self.transform(image)])[0]

    def transform(self, image: Tensor) -> Tensor:
        """The part that draws random numbers and differs between images: transforms and size."""
        from torchvision.transforms.v2 import functional  # takes seconds to import

        if self.may_overwrite:
            image = image.clone()
        for transform in self.transforms:
            image = QUICK.get(_name(transform), type(transform).__call__)(transform, image)
        if tuple(image.shape[-2:]) != self.size:
            image = functional.resize(image, list(self.size), antialias=True)
        return image

    def collate(self, images: Sequence[Tensor], normalised: bool = True) -> Tensor:
        """The batch of transformed images, float32 and normalised: (N, C, H, W), channels last.

        If not `normalised`, what `normalise` takes: uint8, a quarter of the bytes, unless a user's
        transform made floats.
        """
        from torchvision.transforms.v2 import functional

        is_bytes = all(image.dtype == torch.uint8 for image in images)
        dtype = torch.uint8 if is_bytes and not normalised else torch.float32
        batch = torch.empty(len(images), *self.size, len(images[0]), dtype=dtype)
        for place, image in zip(batch, images, strict=True):
            if image.dtype != torch.uint8:  # from a user's transform
                image = functional.to_dtype(image, torch.float32, scale=True) * 255
            # image by image, as one fits into the processor's cache
            values = place.copy_(image.permute(1, 2, 0)).view(self.size[0], -1)
            if normalised:
                torch.addcmul(self.shift, values, self.scale, out=values)
        return batch.permute(0, 3, 1, 2)

    def normalise(self, batch: Tensor) -> Tensor:
        """A batch that `collate` did not normalise, normalised where it is: float32."""
        if self._constants[0].device != batch.device:
            self._constants = [values.to(batch.device) for values in self._constants]
        return torch.addcmul(self._constants[0], batch.float(), self._constants[1])


def padded(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Images as read, for a network that does the rest: uint8 (N, 3, H, W), padded to the largest,
    and their sizes (N, 2).
    """
    sizes = torch.tensor([image.shape[1:] for image in images])
    batch = torch.zeros(len(images), 3, *sizes.amax(0), dtype=torch.uint8)
    for place, image, (height, width) in zip(batch, images, sizes, strict=True):
        place[:, :height, :width] = image
    return batch, sizes


def unpadded(batch: Tensor, sizes: Tensor) -> list[Tensor]:
    """The images (3, H, W) in what `padded` returned."""
    rows = zip(batch, sizes.tolist(), strict=True)
    return [image[:, :height, :width] for image, (height, width) in rows]


def side_to_read(transforms: dict[str, Sequence[Transform]], size: Size) -> int | None:
    """Shorter side to read images with; None for the whole image.

    Twice what the first resizing makes of them. None if a transform before it counts in pixels (a
    crop, a blur), which must get the whole image.
    """
    sides = []
    for subset in ("train", "eval"):
        first = next((t for t in transforms.get(subset, []) if _name(t) not in SIZELESS), None)
        resizes = _name(first) in ("Resize", "RandomResizedCrop")
        result = size if first is None else first.size if resizes else None
        if result is None:
            return None
        sides.append(max(result))
    return READ_LARGER * max(sides)


def _checked_region(region: Sequence[float]) -> Sequence[float]:
    left, top, right, bottom = region
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise UserError(
            f"transforms: the region {list(region)} should be [left, top, right, bottom], as "
            "shares of width and height from 0 to 1"
        )
    return region


def _cut_out(image: Tensor, region: Sequence[float]) -> Tensor:
    """The part of an image (C, H, W), at least a pixel; a view."""
    for axis, start, stop in zip((-2, -1), region[1::-1], region[:1:-1], strict=True):
        side = image.shape[axis]
        first = min(round(start * side), side - 1)
        image = image.narrow(axis, first, max(round(stop * side) - first, 1))
    return image


def _resized(image: Tensor, like: Tensor) -> Tensor:
    if image.shape[-2:] == like.shape[-2:]:
        return image
    size = tuple(like.shape[-2:])
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def _flip(transform: nn.Module, image: Tensor) -> Tensor:
    """As torchvision's random flips, without their detours for boxes and masks."""
    if torch.rand(1) >= transform.p:
        return image
    return image.flip(-1 if "Horizontal" in _name(transform) else -2)


def _resized_crop(transform: nn.Module, image: Tensor) -> Tensor:
    """As torchvision's RandomResizedCrop in two thirds of the time: the crop is contiguous."""
    bilinear = getattr(transform.interpolation, "value", transform.interpolation) == "bilinear"
    if not (bilinear and transform.antialias and image.dtype == torch.uint8):
        return transform(image)
    box = transform.make_params([image])
    rows = slice(box["top"], box["top"] + box["height"])
    columns = slice(box["left"], box["left"] + box["width"])
    crop = image[None, :, rows, columns].contiguous(memory_format=torch.channels_last)
    return F.interpolate(crop, tuple(transform.size), mode="bilinear", antialias=True)[0]


QUICK = {"RandomResizedCrop": _resized_crop, **dict.fromkeys(FLIPS, _flip)}


def _name(transform: Transform | None) -> str:
    """The class's name if it is torchvision's own, else ""."""
    cls = type(transform)
    return cls.__name__ if cls.__module__.startswith("torchvision.") else ""


def given_normalisation(normalize: str | dict, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C, 1, 1) as the config gives them. Raises UserError."""
    if normalize == "imagenet":
        mean, std = IMAGENET[channels]
    else:
        mean, std = normalize.get("mean", []), normalize.get("std", [])
    if not len(mean) == len(std) == channels or min(std) <= 0:
        need = f"{channels} numbers each, one per channel, std above 0"
        raise UserError(f'data_loader.args.normalize: "mean" and "std" need {need}')
    return torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
