"""Rows of numbers."""

import numpy as np
import torch

from base import BaseDataLoader
from data_loader.datasets import InMemory
from utils.engine.randomness import stratified_choice
from utils.errors import UserError


class DiabetesDataLoader(BaseDataLoader):
    """442 patients, ten numbers of each, and the progress of the disease a year later (25 to 346).

    Comes with scikit-learn; 354 to train, 88 to test. The inputs are standardised.
    Source: Efron et al. 2004, doi:10.1214/009053604000000067.
    """

    in_memory = True

    def build_dataset(self, subset: str, augment: bool) -> InMemory:
        from sklearn.datasets import load_diabetes  # takes seconds to import

        if subset == "val":
            raise UserError("the data has no validation part of its own; set validation_split")
        inputs, targets = load_diabetes(return_X_y=True, scaled=False)
        # The test part must be the same in every run, whatever the seed.
        test = stratified_choice(None, len(inputs), 88, seed=0)
        train = np.setdiff1d(np.arange(len(inputs)), test)
        mean, std = inputs[train].mean(0), inputs[train].std(0)
        chosen = train if subset == "train" else test
        columns = (inputs[chosen] - mean) / std, targets[chosen]
        data = InMemory(*(torch.from_numpy(column).float() for column in columns))
        data.mean, data.std = mean, std
        return data
