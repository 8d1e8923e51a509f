import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from base import BaseDataLoader
from data_loader.datasets import Flip, PicturesInMemory, Shift
from utils.errors import UserError
from utils.hints import NonNegativeInt
from utils.randomness import stratified_choice


class DigitsDataLoader(BaseDataLoader):
    """1,797 real handwritten digits that come with scikit-learn, so no download: 1,438 to train, 359 to test.

    Made from 8x8 to 28x28, with a border as in MNIST, so that networks for either take both.
    Source: Alpaydin and Kaynak 1998, UCI repository, doi:10.24432/C50P49.

    Args:
        data_dir: folder to keep the digits in once they were read
    """

    in_memory = True

    def __init__(self, data_dir: str = "data/", **kwargs: Any):
        self.data_dir = data_dir
        super().__init__(**kwargs)

    def build_dataset(self, subset: str, augment: bool) -> Dataset:
        pictures, targets = read_digits(Path(self.data_dir) / "digits.npz")
        if subset == "val":
            raise UserError("the digits have no validation part of their own; set validation_split")
        # The test part must be the same in every run, whatever the seed.
        test = stratified_choice(targets, len(targets), round(len(targets) * 0.2), seed=0)
        chosen = test if subset == "test" else np.setdiff1d(np.arange(len(targets)), test)
        grown = F.interpolate(torch.from_numpy(pictures[chosen])[:, None].float(), size=(24, 24), mode="bilinear")
        grown = F.pad(grown * (255 / 16), (2, 2, 2, 2)).round().to(torch.uint8)
        names = [str(digit) for digit in range(10)]
        return PicturesInMemory(grown, torch.from_numpy(targets[chosen]), names, mean=[0.22], std=[0.32])


class MnistDataLoader(BaseDataLoader):
    """Handwritten digits 28x28, 60,000 to train, 10,000 to test: LeCun et al. 1998, doi:10.1109/5.726791.

    Args:
        data_dir: torchvision's folder; the files are in MNIST/raw below it, and fetched if they are not
    """

    in_memory = True
    name, mean, std = "MNIST", [0.1307], [0.3081]

    def __init__(self, data_dir: str = "data/", **kwargs: Any):
        self.data_dir = data_dir
        super().__init__(**kwargs)

    def build_dataset(self, subset: str, augment: bool) -> Dataset:
        from torchvision import datasets

        if subset == "val":
            raise UserError(f"{self.name} has no validation part of its own; set validation_split")
        kind = getattr(datasets, self.name)
        try:
            data = kind(self.data_dir, train=subset != "test", download=True)
        except (RuntimeError, OSError) as error:
            files = ", ".join(file for file, _ in kind.resources)
            reason = str(error).splitlines()[0].rstrip(":")
            raise UserError(
                f"{self.name} is not in {self.data_dir}, and could not be fetched ({reason}). "
                f"Put {files} into {Path(self.data_dir) / self.name / 'raw'}, or set data_loader.args.data_dir"
            ) from None
        return PicturesInMemory(data.data[:, None], data.targets, data.classes, self.mean, self.std)


class FashionMnistDataLoader(MnistDataLoader):
    """Ten kinds of clothes 28x28, in the files and numbers of MNIST: Xiao et al., arXiv:1708.07747."""

    name, mean, std = "FashionMNIST", [0.2860], [0.3530]


class Cifar10DataLoader(BaseDataLoader):
    """Ten kinds of things in colour, 32x32, 50,000 to train, 10,000 to test: Krizhevsky 2009.

    Args:
        data_dir: torchvision's folder; the files are in cifar-10-batches-py below it, and fetched if they are not
        flip: mirror half of the training pictures
        shift: move the training pictures by up to so many pixels
    """

    in_memory = True
    mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]

    def __init__(self, data_dir: str = "data/", flip: bool = True, shift: NonNegativeInt = 2, **kwargs: Any):
        self.data_dir, self.flip, self.shift = data_dir, flip, shift
        super().__init__(**kwargs)

    def build_dataset(self, subset: str, augment: bool) -> Dataset:
        from torchvision import datasets

        if subset == "val":
            raise UserError("CIFAR-10 has no validation part of its own; set validation_split")
        try:
            data = datasets.CIFAR10(self.data_dir, train=subset != "test", download=True)
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0].rstrip(":")
            raise UserError(
                f"CIFAR-10 is not in {self.data_dir}, and could not be fetched ({reason}). "
                f"Put the folder cifar-10-batches-py there, or set data_loader.args.data_dir"
            ) from None
        pictures, targets = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)
        augmentation = [*([Flip()] if self.flip else []), *([Shift(self.shift)] if self.shift else [])] if augment else []
        return PicturesInMemory(pictures, targets, data.classes, self.mean, self.std, augmentation)


def read_digits(kept: Path) -> tuple[np.ndarray, np.ndarray]:
    """The digits, uint8 (1797, 8, 8) from 0 to 16, and their numbers, int64 (1797,); through scikit-learn only once."""
    if not kept.exists():
        from sklearn.datasets import load_digits  # takes seconds to import

        digits = load_digits()
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_name(f".{kept.stem}.{os.getpid()}.tmp.npz")
        np.savez_compressed(temporary, images=digits.images.astype(np.uint8), target=digits.target.astype(np.int64))
        temporary.replace(kept)
    try:
        with np.load(kept, allow_pickle=False) as digits:
            return digits["images"], digits["target"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{kept} is damaged ({error}); delete it, and it is made anew") from None
