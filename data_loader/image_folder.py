import functools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from base import BaseDataLoader
from data_loader.cache import Cache, digest
from data_loader.checks import Contents, check_images, read_all
from data_loader.pictures import picture_suffixes, read_picture
from data_loader.transforms import PRESETS, Pipeline, given_normalisation, side_to_read
from utils.errors import UserError
from utils.hints import PositiveInt, Share
from utils.randomness import seed_of

SUBSETS = ("train", "val", "test")


class ImageFolderDataLoader(BaseDataLoader):
    """Your own pictures, a folder for each class: `data_dir/train/NG/a.png`, or `data_dir/NG/a.png` with `split`.

    Every file is read once at the start, so that a damaged one is found before training, not in its middle.

    Args:
        data_dir: folder with the folders train, val and test (the last two need not be there), or with those of the classes
        image_size: pixels that pictures are resized to: of a side, or [height, width]
        channels: 3 for colour, 1 for grey
        split: shares of training, validation and test, [0.8, 0.1, 0.1], where data_dir holds the classes' folders; each
            file's part follows from its name and the seed alone, so it stays whatever is added, and shares are approximate
        transforms: "imagenet", "inspection", "none" (resize only), or names of transforms for training and evaluation
        normalize: what to subtract and divide by: ImageNet's mean and std, those of the training data, or given ones
        balance: make up for rare classes: "sampler" draws them as often as others, "loss" weights them there
        on_bad_file: what to do about files that cannot be read: "skip" leaves them out and says so, "stop" stops
        cache: where decoded pictures are kept: "ram"; "disk", in the folder data_dir.cache, for later runs too; "auto" takes
            memory if a quarter of what is free is enough, else the disk; null decodes them in each epoch. The batches are
            the same with each
    """

    def __init__(
        self,
        data_dir: str,
        image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 224,
        channels: Literal[1, 3] = 3,
        split: tuple[Share, Share, Share] | None = None,
        transforms: Literal["imagenet", "inspection", "none"] | dict[Literal["train", "eval"], list[Any]] = "none",
        normalize: Literal["imagenet", "data"] | dict[Literal["mean", "std"], list[float]] = "imagenet",
        balance: Literal["sampler", "loss"] | None = None,
        on_bad_file: Literal["skip", "stop"] = "skip",
        cache: Cache = "auto",
        **kwargs: Any,
    ):
        if split is not None and abs(sum(split) - 1) > 1e-6:
            raise UserError(f"data_loader.args.split: the shares {list(split)} should make 1 together")
        self.folder = Path(data_dir)
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.channels, self.split, self.balance, self.on_bad_file = channels, split, balance, on_bad_file
        self.transforms, self.normalize, self.cache = transforms, normalize, cache
        self.given_normalisation = None if normalize == "data" else given_normalisation(normalize, channels)
        self._contents: dict[str, Contents] = {}  # of each subset, once read; loaders of other subsets share it
        super().__init__(**kwargs)

    def build_dataset(self, subset: str, augment: bool) -> "PictureFiles":
        contents = self._read(subset)
        self._stop_at_bad_files([contents])
        balanced = augment and self.balance == "sampler"
        # no method of ours: a circle of references would let the loader's workers end late
        read = functools.partial(read_picture, channels=self.channels, side=self._side)
        return PictureFiles(contents, self.class_names, self._pipeline(augment), read, balanced)

    @property
    def has_validation(self) -> bool:
        own, cut = self._has("val"), super().has_validation
        if own and cut:
            raise UserError("data_loader.args.validation_split: should be 0, as there are validation pictures already")
        return own or cut

    @property
    def class_weights(self) -> list[float] | None:
        """With balance "loss": inverse to each class's number of pictures, 1 on average over them."""
        if self.balance != "loss":
            return None
        counts = np.bincount(np.asarray(self.samples.targets)[self.dataset.indices], minlength=len(self.class_names))
        return (counts.sum() / (len(counts) * counts.clip(1))).tolist()

    def read(self, path: str | os.PathLike) -> Tensor:
        """The picture in a file, uint8 (C, H, W), not larger than is of use. Raises BadPicture."""
        return read_picture(path, self.channels, self._side)

    def prepare(self, picture: Tensor) -> Tensor:
        """One picture from elsewhere, uint8 (C, H, W) as `read` gives it, made what the network is evaluated on."""
        return self._pipeline(augment=False)(picture)

    def check(self) -> list[str]:
        """What `check_images` says of all subsets. Raises UserError where there are bad files and they are to stop us."""
        present = [subset for subset in SUBSETS if subset == "train" or self._has(subset)]
        self._stop_at_bad_files([self._read(subset) for subset in present])
        if self.has_validation and "val" not in present:  # cut from the training pictures
            present.insert(1, "val")
        return check_images({subset: self.of_subset(subset).part() for subset in present}, self.class_names)

    def part(self) -> Contents:
        """The pictures that this loader serves, in order, and the files left out of their folder."""
        whole = self.samples.contents
        served = self.dataset.indices if whole.paths else []
        return replace(whole, **{key: [getattr(whole, key)[i] for i in served] for key in ("paths", "targets", "digests")})

    @functools.cached_property
    def class_names(self) -> list[str]:
        """Names of the folders with training pictures, sorted: their places are the class numbers."""
        names = _folders(self._folder_of("train"))
        if not names:
            raise UserError(f"{self._folder_of('train')} holds no folders; it should hold one for each class")
        return names

    @functools.cached_property
    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel (C, 1, 1), pictures taken as 0 to 1."""
        if self.given_normalisation is not None:
            return self.given_normalisation
        mean, std = (torch.tensor(v, dtype=torch.float32) for v in self._read("train").mean_and_std())
        return mean.view(-1, 1, 1), std.view(-1, 1, 1)

    @functools.cached_property
    def _chosen(self) -> dict[str, list[Callable]]:
        return PRESETS[self.transforms](self.image_size) if isinstance(self.transforms, str) else self.transforms

    @property
    def _side(self) -> int | None:
        return side_to_read(self._chosen, self.image_size)

    def _pipeline(self, augment: bool) -> Pipeline:
        return Pipeline(self._chosen.get("train" if augment else "eval", []), self.image_size, *self.normalisation)

    def _read(self, subset: str) -> Contents:
        if subset not in self._contents:
            suffixes, files = picture_suffixes(), self._files(subset)
            pictures = [file for file in files if Path(file[0]).suffix.lower() in suffixes]
            stem = f"{subset}-{digest(pictures, self.folder, self.channels, self._side)}"
            place = self.folder.resolve().with_name(f"{self.folder.resolve().name}.cache") / stem
            self._contents[subset] = read_all(pictures, self.channels, self._side, self.cache, place)
            self._contents[subset].ignored = [path for path, _ in files if Path(path).suffix.lower() not in suffixes]
        return self._contents[subset]

    def _stop_at_bad_files(self, read: list[Contents]) -> None:
        bad = [line for contents in read for line in contents.bad]
        if bad and self.on_bad_file == "stop":
            raise UserError("\n  ".join(["pictures that cannot be read (data_loader.args.on_bad_file is stop):", *bad]))

    def _files(self, subset: str) -> list[tuple[str, int]]:
        """(path, class number) of the files of a subset, in torchvision's order; hidden ones do not count."""
        folder = self._folder_of(subset)
        labels = _folders(folder)
        if unknown := [name for name in labels if name not in self.class_names]:
            raise UserError(f"{folder} has {', '.join(unknown)}, which the training pictures have not: a class of no number")
        files = [
            (Path(place, name), self.class_names.index(label))
            for label in labels
            for place, _, names in sorted(os.walk(folder / label, onerror=_refuse, followlinks=True))
            for name in sorted(names)
        ]
        return [
            (str(path), number)
            for path, number in files
            if not any(part.startswith(".") for part in path.relative_to(folder).parts)
            and (self.split is None or self._part_of(path) == subset)
        ]

    def _part_of(self, path: Path) -> str:
        # Of this file alone: were it of its rank among others too, a file added would move others to the test data.
        name = path.relative_to(self.folder).as_posix()
        place = seed_of(self.settings["seed"], "part", name) / 2**63
        return SUBSETS[int(np.searchsorted(np.cumsum(self.split)[:2], place, side="right"))]

    def _has(self, subset: str) -> bool:
        return self.split[SUBSETS.index(subset)] > 0 if self.split else (self.folder / subset).is_dir()

    def _folder_of(self, subset: str) -> Path:
        folder = self.folder if self.split else self.folder / subset
        if not folder.is_dir():
            classes = not self.split and not self._has("train") and self.folder.is_dir() and _folders(self.folder)
            hint = '; if data_dir holds the classes\' folders, say "split": [0.8, 0.1, 0.1]' if classes else ""
            raise UserError(f"data_loader.args.data_dir: there is no folder {folder}{hint}")
        if self.split and {"train", "val"} <= set(_folders(folder)):
            raise UserError(f"data_loader.args.split: {folder} is divided into train and val already")
        return folder


class PictureFiles(Dataset):
    """Samples (float32 (C, H, W), class number) of picture files, normalised.

    Args:
        contents: the files
        classes: the classes' names
        pipeline: from the picture as read to what the network sees
        read: function that gives the picture of a path, uint8 (C, H, W); for those that are not kept
        balanced: whether all classes should come equally often
    """

    def __init__(self, contents: Contents, classes: list[str], pipeline: Pipeline, read: Callable, balanced: bool):
        self.contents, self.classes, self.pipeline, self.read = contents, classes, pipeline, read
        self.balanced = balanced
        self.paths, self.targets = contents.paths, contents.targets
        self.mean, self.std = pipeline.mean, pipeline.std

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pictures, targets = self.together([self.draw(index)])
        return pictures[0], int(targets[0])

    def draw(self, index: int) -> tuple[Tensor, int]:
        """The sample as it is before it is made a part of a batch: uint8."""
        kept = self.contents.pictures
        return self.pipeline.draw(self.read(self.paths[index]) if kept is None else kept[index]), self.targets[index]

    def together(self, drawn: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        pictures, targets = zip(*drawn, strict=True)
        return self.pipeline.together(pictures), torch.tensor(targets)


def _refuse(error: OSError) -> None:
    raise error  # os.walk would pass over a folder that may not be read, and say nothing


def _folders(place: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(place) if entry.is_dir() and not entry.name.startswith("."))
