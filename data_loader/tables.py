"""Rows of numbers."""

import numpy as np
import torch
from torch import Tensor

from base import BaseDataset
from data_loader.datasets import InMemoryDataLoader, fixed_part


class DiabetesDataLoader(InMemoryDataLoader):
    """442 patients, ten numbers of each, and the progress of the disease a year later (25 to 346).

    Comes with scikit-learn; 354 to train, 88 to test. The inputs are standardised.
    Source: Efron et al. 2004, doi:10.1214/009053604000000067.
    """

    def _load(self, train: bool, augment: bool) -> "Rows":
        from sklearn.datasets import load_diabetes  # takes seconds to import

        inputs, targets = load_diabetes(return_X_y=True, scaled=False)
        for_training = fixed_part(None, len(inputs), 88, train=True)
        mean, std = inputs[for_training].mean(0), inputs[for_training].std(0)
        chosen = fixed_part(None, len(inputs), 88, train)
        return Rows((inputs[chosen] - mean) / std, targets[chosen], mean, std)


class Rows(BaseDataset):
    """Standardised rows (N, k) and their targets (N,), held in memory and served in whole batches.

    `mean` and `std` (k,) are what was subtracted from each column, and what it was divided by.
    """

    deterministic = True

    def __init__(self, inputs: np.ndarray, targets: np.ndarray, mean: np.ndarray, std: np.ndarray):
        self.inputs, self.values = (torch.from_numpy(x).float() for x in (inputs, targets))
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.values[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.inputs[indices], self.values[indices]
