"""Images with masks, for segmentation."""

import functools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from base import BaseDataLoader, BaseDataset
from data_loader.files import SUBSETS, DataFolder, find_files
from data_loader.image_folder import ImagesInFolders
from data_loader.images import BadImage, read_image
from data_loader.transforms import Pipeline
from utils.config.hints import NonNegativeInt, PositiveInt
from utils.errors import UserError
from utils.files import printable

NO_CLASS = 255  # in masks: pixels that do not count


class MaskFolderDataLoader(ImagesInFolders, BaseDataLoader):
    """Your own images and a mask of the same name for each: `data_dir/train/images/a.png` and
    `data_dir/train/masks/a.png`.

    Samples are (float32 (C, H, W), class numbers int64 (H, W)). Every file is read once at the
    start, so that a damaged one is found before the training.

    Args:
        data_dir: folder that contains train, val and test, the last two if there are any
        classes: the value that each class has in masks, {"background": 0, "part": 255}, in the
            order of the network's outputs. 255 does not count unless it is one of them
        image_size: pixels to resize images and masks to: of a side, or [height, width]
        transforms: lists of names for "train" and "eval"; image and mask are turned alike
    """

    def __init__(
        self,
        data_dir: str,
        classes: dict[str, NonNegativeInt],
        image_size: PositiveInt | tuple[PositiveInt, PositiveInt],
        transforms: dict[Literal["train", "eval"], list[Any]] | None = None,
        **kwargs: Any,
    ):
        self.folder = DataFolder(Path(data_dir), None, None, seed=0)
        self.values, self._transforms = classes, transforms or {}
        super().__init__(image_size=image_size, **kwargs)

    def build_dataset(self, subset: str, augment: bool) -> "MaskFiles":
        return MaskFiles(self._pairs(subset), self.values, self.channels, self._pipeline(augment))

    def check(self) -> list[str]:
        """Reads all files. Returns a line for each subset: images, and each class's pixels."""
        lines = []
        for subset in (s for s in SUBSETS if s == "train" or s in self.folder.subsets):
            data = self.for_subset(subset).samples
            masks = (data.read(index)[1].flatten() for index in range(len(data)))
            counts = sum(torch.bincount(mask, minlength=256) for mask in masks)[: len(self.values)]
            shares = (counts / counts.sum().clamp(min=1)).tolist()
            named = zip(self.values, shares, strict=True)
            pixels = ", ".join(f"{name} {share:.1%}" for name, share in named)
            lines.append(f"{subset}: {len(data)} images with masks; pixels: {pixels}")
        return lines

    @functools.cached_property
    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel (C, 1, 1), for images scaled to 0..1."""
        sums = torch.zeros(3, self.channels).double()  # of ones, values and squares
        for path, _ in self._pairs("train"):
            pixels = read_image(path, self.channels).flatten(1).double() / 255
            sums += torch.stack([pixels**power for power in range(3)]).sum(2)
        mean, square = sums[1:] / sums[0]
        std = (square - mean**2).clamp(min=1e-12).sqrt()
        return mean.float().view(-1, 1, 1), std.float().view(-1, 1, 1)

    def _pairs(self, subset: str) -> list[tuple[str, str]]:
        """Each image's path and its mask's. Raises UserError if one lacks its mask."""
        place = self.folder.place(subset)
        images, masks = (
            {Path(path).stem: path for part in find_files(folder)[0].values() for path in part}
            for folder in (place / "images", place / "masks")
        )
        missing = [name for name in images if name not in masks]
        if missing or not images:
            what = f"no mask for {', '.join(missing[:5])}" if missing else "no images"
            raise UserError(f"{place} must contain images/ and masks/ of the same names; {what}")
        return [(path, masks[name]) for name, path in images.items()]


class MaskFiles(BaseDataset):
    """Samples of image files and their masks.

    Args:
        pairs: paths of each image and its mask
        values: the value of each class in masks
        channels: of the images
        pipeline: its transforms get both, and it makes the network's input
    """

    def __init__(
        self,
        pairs: list[tuple[str, str]],
        values: dict[str, int],
        channels: int,
        pipeline: Pipeline,
    ):
        self.pairs, self.channels, self.pipeline = pairs, channels, pipeline
        self.classes, self.paths = list(values), [path for path, _ in pairs]
        self.mean, self.std = pipeline.mean, pipeline.std
        self.numbers = torch.full((256,), -1)
        self.numbers[NO_CLASS] = NO_CLASS
        self.numbers[list(values.values())] = torch.arange(len(values))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        batch = self.collate([self.transform(index)])
        images, masks = self.finish(batch) if self.finishes_later else batch
        return images[0], masks[0]

    def transform(self, index: int) -> tuple[Tensor, Tensor]:
        """Image uint8 (C, H, W) and mask (H, W), transformed and resized alike."""
        from torchvision import tv_tensors  # takes seconds to import
        from torchvision.transforms.v2 import functional

        image, mask = self.read(index)
        both = tv_tensors.Image(image), tv_tensors.Mask(mask)
        for transform in self.pipeline.transforms:
            both = transform(*both)
        if tuple(both[0].shape[-2:]) != self.pipeline.size:
            both = [functional.resize(part, list(self.pipeline.size)) for part in both]
        return tuple(part.as_subclass(Tensor) for part in both)

    def collate(self, samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        images, masks = zip(*samples, strict=True)
        return self.pipeline.collate(images, not self.finishes_later), torch.stack(masks)

    def finish(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.pipeline.normalise(batch[0]), batch[1]

    def finish_later(self) -> None:
        self.finishes_later = type(self).collate is MaskFiles.collate  # another may want float32

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Image uint8 (C, H, W) and mask of class numbers int64 (H, W), as the files have them.

        Raises UserError if a file cannot be read, or if the mask does not fit image and classes.
        """
        path, mask_path = self.pairs[index]
        image = read_image(path, self.channels)
        try:
            with Image.open(mask_path) as file:
                values = torch.from_numpy(np.asarray(file).astype(np.int64))
        except (OSError, SyntaxError) as error:
            raise BadImage(printable(mask_path), f"cannot be read ({error})") from error
        numbers, problem = self.numbers[values.clip(0, 255)], ""
        if values.shape != image.shape[1:]:
            problem = f"is {list(values.shape)} in size, the image {list(image.shape[1:])}"
        elif unknown := values[(numbers < 0) | (values > 255)].unique().tolist():
            shown = ", ".join(map(str, unknown[:5]))
            problem = f"contains {shown}, to which data_loader.args.classes gives no class"
        if problem:
            raise BadImage(printable(mask_path), problem)
        return image, numbers
