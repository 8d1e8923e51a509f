"""Rows of numbers."""

import numpy as np
import torch
from torch import Tensor

from base import BaseDataLoader, BaseDataset
from utils.engine.randomness import stratified_choice
from utils.errors import UserError


class DiabetesDataLoader(BaseDataLoader):
    """442 patients, ten numbers of each, and the progress of the disease a year later (25 to 346).

    Comes with scikit-learn; 354 to train, 88 to test. The inputs are standardised.
    Source: Efron et al. 2004, doi:10.1214/009053604000000067.
    """

    in_memory = True

    def build_dataset(self, subset: str, augment: bool) -> "Rows":
        from sklearn.datasets import load_diabetes  # takes seconds to import

        if subset == "val":
            raise UserError("the data has no validation part of its own; set validation_split")
        inputs, targets = load_diabetes(return_X_y=True, scaled=False)
        # The test part must be the same in every run, whatever the seed.
        test = stratified_choice(None, len(inputs), 88, seed=0)
        train = np.setdiff1d(np.arange(len(inputs)), test)
        mean, std = inputs[train].mean(0), inputs[train].std(0)
        chosen = train if subset == "train" else test
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
