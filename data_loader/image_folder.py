import functools
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from base import BaseDataLoader, BaseDataset
from data_loader.cache import Cache, Contents, ImageStore, Reader
from data_loader.checks import check_images
from data_loader.datasets import Balanced
from data_loader.files import SUBSETS, DataFolder, Paths
from data_loader.images import read_image
from data_loader.label_table import LabelTable
from data_loader.transforms import (
    PRESETS,
    Pipeline,
    Transform,
    given_normalisation,
    padded,
    side_to_read,
    unpadded,
)
from utils.config.hints import PositiveInt, Share
from utils.engine.engine import Tensors
from utils.errors import UserError


class ImagesInFolders:
    """Part of a loader of image files: those of a `DataFolder`, `self.folder`, to which
    `self._transforms` are applied.

    Args:
        image_size: pixels to resize images to: of a side, or [height, width]
        channels: 3 for colour, 1 for grey
        normalize: mean and std: "imagenet", "data" (those of the training images), or values
    """

    folder: DataFolder
    _transforms: dict[str, list[Transform]]

    def __init__(
        self,
        image_size: PositiveInt | tuple[PositiveInt, PositiveInt],
        channels: Literal[1, 3] = 3,
        normalize: Literal["imagenet", "data"]
        | dict[Literal["mean", "std"], list[float]] = "imagenet",
        **kwargs: Any,
    ):
        self.image_size = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size)
        self.channels = channels
        if normalize != "data":
            self.normalisation = given_normalisation(normalize, channels)
        super().__init__(**kwargs)

    @property
    def has_validation(self) -> bool:
        own, cut = "val" in self.folder.subsets, self.settings["validation_split"] > 0
        if own and cut:
            raise UserError("data_loader.args.validation_split must be 0: there is a val part")
        return own or self.is_cut

    def _pipeline(self, augment: bool) -> Pipeline:
        transforms = self._transforms.get("train" if augment else "eval", [])
        return Pipeline(transforms, self.image_size, *self.normalisation)


class ImageFolderDataLoader(Balanced, ImagesInFolders, BaseDataLoader):
    """Your own images, one folder per class: `data_dir/train/NG/a.png`.

    With `split` the classes' folders are in data_dir itself: `data_dir/NG/a.png`. Every file is
    read once at the start, so that a damaged one is found before the training.

    Args:
        data_dir: folder that contains train, val and test (optional; valid, validation, training
            and testing mean the same) or, with `split`, the classes
        split: shares of training, validation, test, [0.8, 0.1, 0.1], if data_dir contains classes.
            Approximate: the part of a file follows from its name and the seed alone, so it stays
            when files are added
        stratify: with `split`: divide each class by the shares, and keep the part of each file in
            the folder data_dir.cache, so that it stays when files are added
        labels: CSV or TSV file in data_dir with a row per image, which replaces the folders'
            names: its header names the columns path and label, subset ("train", "val", "test") and
            group if there are any. The classes of an image that has several: "crack|dent"
        group: regular expression that finds the name of a lot, camera or patient in a file's name;
            with `split` all files of a lot are in one part, with `validation_split`, too
        transforms: "imagenet", "inspection", "none" (resize only), or lists for "train" and "eval"
        on_bad_file: what to do if a file cannot be read: "skip" reports and omits it, "stop" stops
        cache: where to keep decoded images: "ram", "disk", "auto", or null to decode in each epoch.
            "disk" is the folder data_dir.cache, for later runs, too; "auto" uses it if a quarter
            of the free disk is enough, else memory in the same way. The batches are the same
        classes: names of the classes in the order of the network's outputs; null for those of the
            folders with training images, sorted. With a checkpoint its classes, unless set here
        pixel_range: [lowest, highest] value of images with more than 8 bits, made 0 and 255. "data"
            finds it in the training images: integers as 8, 10, 12, 14 or 16 bits hold them, floats
            as 0..1 if they are, else from the lowest to the highest. null for 8 bits only; "file"
            scales each file by the type of its values
        data_check: "before" reads every file before the training that is new or has changed;
            "while-training" reads training images when they are needed and leaves bad ones out of
            their batch, for large sets: `normalize` must be given then, and validation images be
            others (a val part, or `split`)
    """

    folder_type = DataFolder

    def __init__(
        self,
        data_dir: str,
        image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 224,
        split: tuple[Share, Share, Share] | None = None,
        stratify: bool = False,
        group: str | None = None,
        labels: str | None = None,
        transforms: Literal["imagenet", "inspection", "none"]
        | dict[Literal["train", "eval"], list[Any]] = "none",
        on_bad_file: Literal["skip", "stop"] = "skip",
        cache: Cache = "auto",
        classes: list[str] | None = None,
        pixel_range: tuple[float, float] | Literal["data", "file"] | None = "data",
        data_check: Literal["before", "while-training"] = "before",
        **kwargs: Any,
    ):
        if isinstance(pixel_range, tuple | list):
            pixel_range = list(map(float, pixel_range))
            if not pixel_range[0] < pixel_range[1]:
                raise UserError(f"data_loader.args.pixel_range: {pixel_range} must ascend")
        if split is not None and abs(sum(split) - 1) > 1e-6:
            raise UserError(f"data_loader.args.split: the shares {list(split)} must add up to 1")
        self.transforms, self.on_bad_file, self.data_check = transforms, on_bad_file, data_check
        super().__init__(image_size=image_size, **kwargs)
        if data_check == "while-training":
            self._check_while_training(cache, **kwargs)
            cache, pixel_range = None, None if pixel_range == "data" else pixel_range
        # shared with the other subsets' loaders
        seed = self.settings["seed"]
        if split is not None and self.settings["fold"]:  # the folds are of all images
            split = (1.0, 0.0, 0.0)
        settings = Path(data_dir), split, classes, seed, stratify, group
        if labels and self.folder_type is not DataFolder:
            name = type(self).__name__
            raise UserError(f"data_loader.args.labels: {name} has the classes in its files")
        folder = self.folder_type(*settings)
        self.folder = LabelTable(*settings, labels) if labels else folder
        self.store = ImageStore(self.folder, cache, pixel_range)

    def _check_while_training(self, cache: Cache, normalize: object = None, **kwargs: Any) -> None:
        """Raises UserError for what cannot be known before all images were read."""
        wanted, place = 'with data_check "while-training"', "data_loader.args."
        if normalize == "data":
            raise UserError(f'{place}normalize: {wanted} it must be "imagenet", or mean and std')
        if cache in ("ram", "disk"):
            raise UserError(f'{place}cache: {wanted} no images are kept; leave "{cache}" out')
        if self.is_cut:
            raise UserError(
                f"{place}{'fold' if self.settings['fold'] else 'validation_split'}: {wanted} the "
                "validation images must be others: set split, or put them in a folder val"
            )

    def build_dataset(self, subset: str, augment: bool) -> "ImageFiles":
        is_unchecked = augment and self.data_check == "while-training"
        contents = self._unchecked() if is_unchecked else self._read(subset)
        self._stop_at_bad_files([contents])
        if self.folder.is_multi_label and self.balance:
            raise UserError("data_loader.args.balance: only for images of one class each")
        balanced = augment and self.balance == "sampler"
        samples = ImageFiles(contents, self.folder.classes, self._pipeline(augment), balanced)
        if self.folder.is_grouped:
            samples.groups = list(map(self.folder.group_of, contents.files.each_name()))
        return samples

    @property
    def read(self) -> Reader:
        """Reads an image file as uint8 (C, H, W), no larger than useful. Raises BadImage."""
        if self.store.pixel_range == "data":
            self._read("train")
        return functools.partial(self._reader, pixel_range=self.store.pixel_range)

    @functools.cached_property
    def digest(self) -> str | None:
        """Changes with the name, the pixels as read or the class of any image that is served."""
        part = self.part()
        return part.digest() if part.is_checked else None

    def _first(self) -> int:
        contents: Contents = self.samples.contents
        places = range(len(contents.files) if contents.checking else 0)
        return next((place for place in places if contents.image(place) is not None), 0)

    @functools.cached_property
    def _reader(self) -> Reader:
        side = side_to_read(self._transforms, self.image_size)
        # Not a method: a reference cycle would let the loader's workers end late.
        return functools.partial(read_image, channels=self.channels, side=side)

    def prepare(self, image: Tensor) -> Tensor:
        """The network's input for one image, uint8 (C, H, W) from `read`, as in evaluation."""
        return self._pipeline(augment=False)(image)

    def decoded(self) -> "ImageFolderDataLoader":
        """A loader of the same samples, whose inputs are the images as read, see `padded`."""
        loader = self.for_subset(self.subset, own_data=True)
        loader.samples.as_decoded = True
        return loader

    def prepare_decoded(self, batch: Tensor, sizes: Tensor) -> Tensor:
        """The network's inputs (N, C, H, W) for a batch of `decoded`."""
        images = unpadded(batch.cpu(), sizes)
        return torch.stack([self.prepare(image[: self.channels]) for image in images])

    def trained_on(self) -> str | None:
        """The digest of the training images, if it is known without reading any."""
        return None if self.is_cut else self.store.indexed_digest("train", self._reader)

    def check(self) -> list[str]:
        """The report on all subsets. Raises UserError for bad files if on_bad_file is "stop"."""
        present = [s for s in SUBSETS if s == "train" or s in self.folder.subsets]
        unchecked = {}
        if self.data_check == "while-training":
            unchecked["train"] = self._unchecked()
            present.remove("train")
        self._stop_at_bad_files([*unchecked.values(), *map(self._read, present)])
        if self.settings["fold"]:
            present = list(SUBSETS)
        elif self.is_cut:
            present.insert(1, "val")
        contents = {subset: self.for_subset(subset).part() for subset in present}
        contents = {subset: whole.good() for subset, whole in unchecked.items()} | contents
        return check_images(contents, self.folder.classes, self.folder.folder)

    def left_out(self) -> list[str]:
        return self.samples.contents.bad

    def part(self) -> Contents:
        """Contents of the images that this loader serves, in order."""
        whole: Contents = self.samples.contents
        return whole.take(self.dataset.indices).good() if len(whole.files) else whole

    @functools.cached_property
    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel (C, 1, 1), for images scaled to 0..1."""
        mean, std = map(torch.tensor, self._read("train").mean_and_std())
        return mean.view(-1, 1, 1), std.view(-1, 1, 1)

    @functools.cached_property
    def _transforms(self) -> dict[str, list[Transform]]:
        if isinstance(self.transforms, str):
            return PRESETS[self.transforms](self.image_size)
        return self.transforms

    def _unchecked(self) -> Contents:
        return self.store.unchecked("train", self._reader, self.on_bad_file == "stop")

    def _read(self, subset: str) -> Contents:
        return self.store.contents(subset, self._reader)

    def _stop_at_bad_files(self, contents: list[Contents]) -> None:
        bad = [line for part in contents for line in part.bad]
        if bad and self.on_bad_file == "stop":
            title = "images that cannot be read (data_loader.args.on_bad_file is stop):"
            raise UserError("\n  ".join([title, *bad]))


class ImageFiles(BaseDataset):
    """Samples (float32 (C, H, W), class number) of image files, normalised. Where an image may have
    several classes, its target is int64 (classes,) of 0 and 1.

    Args:
        contents: the files
        classes: names of the classes
        pipeline: from the image as read to the network's input
        balanced: whether all classes should come equally often
    """

    as_decoded = False  # serve the images as they were read

    def __init__(self, contents: Contents, classes: list[str], pipeline: Pipeline, balanced: bool):
        self.contents, self.classes, self.pipeline = contents, classes, pipeline
        self.paths, self.targets = Paths(contents.files), contents.files.each_target()
        self.mean, self.std, self.balanced = pipeline.mean, pipeline.std, balanced
        self.pixel_range, self.may_lack = contents.pixel_range, contents.checking is not None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        batch = self.collate([self.transform(index)])
        images, targets = self.finish(batch) if self.finishes_later else batch
        return images[0], int(targets[0]) if targets.ndim == 1 else targets[0]

    def transform(self, index: int) -> tuple[Tensor, int | list[int]] | None:
        image = self.contents.image(index)
        if image is None:
            return None
        shown = image if self.as_decoded else self.pipeline.transform(image)
        return shown, self.targets[index]

    def collate(
        self, samples: list[tuple[Tensor, int | list[int]] | None]
    ) -> tuple[Tensors, Tensor]:
        present = [sample for sample in samples if sample is not None]
        if not present:
            raise UserError("no image of the batch can be read")
        images, targets = zip(*present, strict=True)
        if self.as_decoded:
            return padded(images), torch.tensor(targets)
        return self.pipeline.collate(images, not self.finishes_later), torch.tensor(targets)

    def finish(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.pipeline.normalise(batch[0]), batch[1]

    def finish_later(self) -> None:
        is_own = type(self).collate is ImageFiles.collate  # another one may want float32
        self.finishes_later = is_own and not self.as_decoded
