"""Rows of numbers."""

import torch

from data_loader.datasets import InMemory, InMemoryDataLoader, fixed_part


class DiabetesDataLoader(InMemoryDataLoader):
    """442 patients, ten numbers of each, and the progress of the disease a year later (25 to 346).

    Comes with scikit-learn; 354 to train, 88 to test. The inputs are standardised.
    Source: Efron et al. 2004, doi:10.1214/009053604000000067.
    """

    def _load(self, train: bool, augment: bool) -> InMemory:
        from sklearn.datasets import load_diabetes  # takes seconds to import

        inputs, targets = load_diabetes(return_X_y=True, scaled=False)
        for_training = fixed_part(None, len(inputs), 88, train=True)
        mean, std = inputs[for_training].mean(0), inputs[for_training].std(0)
        chosen = fixed_part(None, len(inputs), 88, train)
        columns = (inputs[chosen] - mean) / std, targets[chosen]
        data = InMemory(*(torch.from_numpy(column).float() for column in columns))
        data.mean, data.std = mean, std
        return data
