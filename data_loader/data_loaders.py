from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_loader.datasets import ImagesInMemory, InMemoryDataLoader, fixed_part, flip, shift
from utils.config.hints import NonNegativeInt
from utils.engine.randomness import make_generator
from utils.errors import UserError, first_line
from utils.files import atomic_write


class _ShippedDataLoader(InMemoryDataLoader):
    def __init__(self, data_dir: str = "data/", **kwargs: Any):
        self.data_dir = data_dir
        super().__init__(**kwargs)


class DigitsDataLoader(_ShippedDataLoader):
    """1,797 handwritten digits that come with scikit-learn: 1,438 to train, 359 to test.

    No download. Enlarged from 8x8 to 28x28, with a border as in MNIST, so that networks for either
    take both.
    Source: Alpaydin and Kaynak 1998, UCI repository, doi:10.24432/C50P49.

    Args:
        data_dir: folder where the digits are stored when they are first read
    """

    def _load(self, train: bool, augment: bool) -> ImagesInMemory:
        images, targets = read_digits(Path(self.data_dir) / "digits.npz")
        chosen = fixed_part(targets, len(targets), round(len(targets) * 0.2), train)
        small = torch.from_numpy(images[chosen])[:, None].float()
        large = F.interpolate(small, size=(24, 24), mode="bilinear") * (255 / 16)
        large = F.pad(large, (2, 2, 2, 2)).round().to(torch.uint8)
        classes = [str(digit) for digit in range(10)]
        return ImagesInMemory(large, torch.from_numpy(targets[chosen]), classes, [0.22], [0.32])


class TwoDigitsDataLoader(DigitsDataLoader):
    """Two of scikit-learn's digits side by side in an image: several labels at once.

    719 random pairs to train, 179 to test. Each digit is in one pair only, so no
    digit of a validation or test image is in a training image. Targets are (10,) of 0 and 1.

    Args:
        data_dir: folder where the digits are stored when they are first read
    """

    def _load(self, train: bool, augment: bool) -> ImagesInMemory:
        digits = super()._load(train, augment)
        # the test part must be the same in every run, whatever the seed
        generator = make_generator(self.settings["seed"] if train else 0, "pairs")
        left, right = generator.permutation(len(digits))[: len(digits) // 2 * 2].reshape(2, -1)
        pairs = torch.cat([digits.images[left], digits.images[right]], 3)
        images = F.interpolate(pairs.float(), size=(28, 28), mode="area").round().to(torch.uint8)
        labels = F.one_hot(digits.targets, 10)
        targets = labels[left] | labels[right]
        return ImagesInMemory(images, targets, digits.classes, [0.22], [0.31])


class MnistDataLoader(_ShippedDataLoader):
    """Handwritten digits 28x28, 60,000 to train, 10,000 to test.

    Source: LeCun et al. 1998, doi:10.1109/5.726791.

    Args:
        data_dir: torchvision's folder; the files in MNIST/raw below it are downloaded if missing
    """

    name, mean, std = "MNIST", [0.1307], [0.3081]

    def _load(self, train: bool, augment: bool) -> ImagesInMemory:
        images, targets, classes = _torchvision_data(self.name, self.data_dir, train)
        return ImagesInMemory(images[:, None], targets, classes, self.mean, self.std)


class FashionMnistDataLoader(MnistDataLoader):
    """Ten kinds of clothes 28x28, in files like MNIST's: Xiao et al., arXiv:1708.07747."""

    name, mean, std = "FashionMNIST", [0.2860], [0.3530]


class Cifar10DataLoader(_ShippedDataLoader):
    """Ten kinds of objects in colour, 32x32, 50,000 to train, 10,000 to test: Krizhevsky 2009.

    Args:
        data_dir: torchvision's folder; cifar-10-batches-py below it is downloaded if missing
        flip: mirror half of the training images
        shift: move the training images by up to so many pixels
    """

    mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]

    def __init__(
        self, data_dir: str = "data/", flip: bool = True, shift: NonNegativeInt = 2, **kwargs: Any
    ):
        self.flip, self.shift = flip, shift
        super().__init__(data_dir, **kwargs)

    def _load(self, train: bool, augment: bool) -> ImagesInMemory:
        images, targets, classes = _torchvision_data("CIFAR10", self.data_dir, train)
        images = images.permute(0, 3, 1, 2).contiguous()
        augmentation = [flip] if augment and self.flip else []
        if augment and self.shift:
            augmentation.append(partial(shift, pixels=self.shift))
        return ImagesInMemory(images, targets, classes, self.mean, self.std, augmentation)


def _torchvision_data(name: str, data_dir: str, train: bool) -> tuple[Tensor, Tensor, list[str]]:
    """Images as torchvision stores them, class numbers, names of the classes."""
    from torchvision import datasets  # takes seconds to import

    cls, folder = getattr(datasets, name), Path(data_dir)
    try:
        data = cls(data_dir, train=train, download=True)
    except (RuntimeError, OSError) as error:
        files = ["the folder cifar-10-batches-py"]
        if name != "CIFAR10":
            files, folder = [file for file, _ in cls.resources], folder / name / "raw"
        reason = first_line(error).rstrip(":")
        raise UserError(
            f"{name} is not in {data_dir}, and the download failed ({reason}). "
            f"Put {', '.join(files)} into {folder}, or set data_loader.args.data_dir"
        ) from None
    return torch.as_tensor(data.data), torch.as_tensor(data.targets), data.classes


def read_digits(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The digits, uint8 (1797, 8, 8) from 0 to 16, and their classes, int64 (1797,).

    Reads `path`, and writes it with scikit-learn the first time.
    """
    if not path.exists():
        from sklearn.datasets import load_digits  # takes seconds to import

        digits = load_digits()
        path.parent.mkdir(parents=True, exist_ok=True)
        images, target = digits.images.astype(np.uint8), digits.target.astype(np.int64)
        with atomic_write(path) as file:
            np.savez_compressed(file, images=images, target=target)
    try:
        with np.load(path, allow_pickle=False) as digits:
            if damaged := digits.zip.testzip():  # numpy may read too few bytes to notice
                raise ValueError(f"{damaged} has another checksum")
            return digits["images"], digits["target"]
    except Exception as error:  # of eight types, depending on where the damage is
        reason = first_line(error)
        raise UserError(f"{path} is damaged ({reason}); delete it to create it again") from None
