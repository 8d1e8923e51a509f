from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from base import BaseDataLoader, BaseDataset
from utils.engine.randomness import stratified_choice
from utils.errors import UserError


class InMemoryDataLoader(BaseDataLoader):
    """Training and test samples that fit into memory: write `_load`."""

    in_memory = True

    def build_dataset(self, subset: str, augment: bool) -> BaseDataset:
        if subset == "val":
            raise UserError("the data has no validation part of its own; set validation_split")
        return self._load(subset == "train", augment)

    def check(self) -> list[str]:
        if (wanted := self.settings["num_workers"]) in (0, "auto"):
            return super().check()
        reason = "the data is in memory, where workers would only copy it"
        return [*super().check(), f"num_workers {wanted}: none is started, as {reason}"]

    @abstractmethod
    def _load(self, train: bool, augment: bool) -> BaseDataset:
        """The training samples, or those for testing."""


class Balanced:
    """Part of a loader of classes, some of which may be rare.

    Args:
        balance: for rare classes: "sampler" draws them as often as others, "loss" weights them
    """

    def __init__(self, balance: Literal["sampler", "loss"] | None = None, **kwargs: Any):
        self.balance = balance
        super().__init__(**kwargs)

    @property
    def class_weights(self) -> list[float] | None:
        """With balance "loss": inversely proportional to a class's number of samples."""
        if self.balance != "loss":
            return None
        targets = np.asarray(self.samples.targets)[self.dataset.indices]
        counts = np.bincount(targets, minlength=len(self.classes))
        return (counts.sum() / (len(counts) * counts.clip(1))).tolist()


def fixed_part(
    targets: Sequence | np.ndarray | None, count: int, size: int, train: bool
) -> np.ndarray:
    """`size` of `count` samples to test on, or the others; the same in every run for any seed."""
    test = stratified_choice(targets, count, size, seed=0)
    return np.setdiff1d(np.arange(count), test) if train else test


class InMemory(BaseDataset):
    """Inputs (N, ...) and targets (N, ...), held in memory and served in whole batches."""

    deterministic = True

    def __init__(self, inputs: Tensor, targets: Tensor):
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int | list[int]) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self[indices]


class ImagesInMemory(BaseDataset):
    """Images held as bytes and served in whole batches, on the device that holds them.

    Args:
        images: uint8 (N, C, H, W)
        targets: class numbers (N,), or 0 and 1 for each class (N, classes)
        classes: names of the classes
        mean: of each channel, for images scaled to 0..1; subtracted
        std: of each channel; divided by
        augmentation: functions of a batch, uint8 (n, C, H, W), that return a batch; they draw their
            random numbers on the CPU, so that the result is the same on every device
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        classes: list[str],
        mean: list[float],
        std: list[float],
        augmentation: Sequence[Callable[[Tensor], Tensor]] = (),
    ):
        self.images, self.targets, self.classes = images, targets, classes
        self.mean, self.std = torch.tensor([mean, std], dtype=torch.float32)[:, :, None, None]
        self.augmentation, self.deterministic = augmentation, not augmentation

    def to(self, device: torch.device) -> bool:
        """Hold, augment and normalise the images on `device`, if they fit into a quarter of its
        free memory. The targets stay on the CPU, where the trainer may need them.
        """
        if self.images.device == device:
            return True
        if device.type == "cuda" and self.images.numel() >= _free_memory(device) // 4:
            return False
        self.images = self.images.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return True

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, targets = self.__getitems__([index])
        return images[0], targets[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """The batch of these samples, normalised: float32 (n, C, H, W), and their targets."""
        chosen = torch.from_numpy(np.array(indices))  # of a list, five times as fast as torch's
        batch = self.images.index_select(0, sent(chosen, self.images.device))
        for function in self.augmentation:
            batch = function(batch)
        return batch.div(255).sub_(self.mean).div_(self.std), self.targets[chosen]


def _free_memory(device: torch.device) -> int:
    """Bytes of a GPU that are free, for the system or for torch, which keeps what it freed."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; a GPU fetches it when it needs it, and nothing waits for that."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def flip(batch: Tensor) -> Tensor:
    """Mirror each image of a batch (n, C, H, W) with probability 1/2."""
    mirrored = sent(torch.rand(len(batch)) < 0.5, batch.device)
    return torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)


def shift(batch: Tensor, pixels: int) -> Tensor:
    """Move each image of a batch by up to `pixels` in each direction; reflect it at its borders."""

    def positions(size: int) -> Tensor:
        moved = torch.arange(size) + torch.randint(-pixels, pixels + 1, (len(batch), 1))
        reflected = size - 1 - (size - 1 - moved.abs()).abs()
        return sent(reflected, batch.device)

    # F.pad(mode="reflect") does not support uint8, so this indexes with reflected positions.
    rows, columns = map(positions, batch.shape[2:])
    images = torch.arange(len(batch), device=batch.device)[:, None, None]
    return batch[images, :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
