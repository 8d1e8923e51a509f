import torch
from torch import Tensor
from torch.utils.data import Dataset


class PicturesInMemory(Dataset):
    """Pictures small enough to be held as bytes, served a whole batch at a time.

    Args:
        pictures: uint8 (N, C, H, W)
        targets: class numbers (N,)
        classes: the classes' names
        mean: of each channel, pictures taken as 0 to 1; subtracted
        std: of each channel; divided by
    """

    draws_nothing = True  # no augmentation

    def __init__(self, pictures: Tensor, targets: Tensor, classes: list[str], mean: list[float], std: list[float]):
        self.pictures, self.targets, self.classes = pictures, targets, classes
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (mean, std))

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pictures, targets = self.__getitems__([index])
        return pictures[0], targets[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """The batch of these samples, normalised: float32 (n, C, H, W) and int64 (n,)."""
        chosen = torch.tensor(indices)
        return self.pictures[chosen].float().div_(255).sub_(self.mean).div_(self.std), self.targets[chosen]
