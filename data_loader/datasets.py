from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset


class PicturesInMemory(Dataset):
    """Pictures small enough to be held as bytes, served a whole batch at a time, on the device that holds them.

    Args:
        pictures: uint8 (N, C, H, W)
        targets: class numbers (N,)
        classes: the classes' names
        mean: of each channel, pictures taken as 0 to 1; subtracted
        std: of each channel; divided by
        augmentation: functions of a batch, uint8 (n, C, H, W), that give another; they draw their random numbers on the CPU
    """

    def __init__(
        self,
        pictures: Tensor,
        targets: Tensor,
        classes: list[str],
        mean: list[float],
        std: list[float],
        augmentation: Sequence[Callable[[Tensor], Tensor]] = (),
    ):
        self.pictures, self.targets, self.classes, self.augmentation = pictures, targets, classes, augmentation
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (mean, std))
        self.draws_nothing = not augmentation

    def to(self, device: torch.device) -> None:
        """Hold, augment and normalise the pictures on `device`; the targets' owner may want them on the CPU."""
        self.pictures, self.mean, self.std = (v.to(device) for v in (self.pictures, self.mean, self.std))

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pictures, targets = self.__getitems__([index])
        return pictures[0], targets[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """The batch of these samples, normalised: float32 (n, C, H, W) and int64 (n,)."""
        chosen = torch.tensor(indices)
        batch = self.pictures[chosen.to(self.pictures.device, non_blocking=True)]
        for function in self.augmentation:
            batch = function(batch)
        return batch.float().div_(255).sub_(self.mean).div_(self.std), self.targets[chosen]


class Flip:
    """Mirror each picture of a batch, or not, with probability 1/2."""

    def __call__(self, batch: Tensor) -> Tensor:
        mirrored = (torch.rand(len(batch)) < 0.5).to(batch.device, non_blocking=True)
        return torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)


class Shift:
    """Move each picture of a batch by up to `pixels` in each direction; what comes in from outside is its mirror image."""

    def __init__(self, pixels: int):
        self.pixels = pixels

    def __call__(self, batch: Tensor) -> Tensor:
        count, _, height, width = batch.shape
        # F.pad's reflection is not to be had for bytes; the places to take are reflected instead
        rows, columns = (
            _reflected(torch.arange(size) + torch.randint(-self.pixels, self.pixels + 1, (count, 1)), size)
            for size in (height, width)
        )
        rows, columns = (v.to(batch.device, non_blocking=True) for v in (rows, columns))
        return batch[torch.arange(count, device=batch.device)[:, None, None], :, rows[:, :, None], columns[:, None]].permute(
            0, 3, 1, 2
        )


def _reflected(places: Tensor, size: int) -> Tensor:
    places = places.abs()
    return torch.where(places >= size, 2 * (size - 1) - places, places)
