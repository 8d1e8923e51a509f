"""Your metrics: functions of (output, target, ...) that return the mean over the batch.

A metric that is not a mean over samples (F1, AUROC) is a torchmetrics class, named in the config.
"""

import torch
from torch import Tensor

from utils.config.hints import PositiveInt


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """The share of samples whose largest output is that of the target class."""
    return (output.argmax(dim=1) == target).mean(dtype=torch.float32)


def top_k_acc(output: Tensor, target: Tensor, k: PositiveInt = 3) -> Tensor:
    """The share of samples whose target class is among the k largest outputs.

    Args:
        k: how many outputs to look at; all of them if there are fewer classes
    """
    largest = output.topk(min(k, output.shape[1]), dim=1).indices
    return (largest == target.unsqueeze(1)).any(dim=1).mean(dtype=torch.float32)
