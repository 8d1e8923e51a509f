"""Your metrics: functions of (output, target, ...) that give the mean over the batch.

What is not a mean of something per sample (F1, AUROC) is a torchmetrics class, named in the config.
"""

import torch
from torch import Tensor

from utils.hints import PositiveInt


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """The share of samples whose largest output is the target's."""
    return (output.argmax(dim=1) == target).mean(dtype=torch.float32)


def top_k_acc(output: Tensor, target: Tensor, k: PositiveInt = 3) -> Tensor:
    """The share of samples whose target is among the k largest outputs; k is at most the number of classes.

    Args:
        k: how many outputs to look at
    """
    largest = output.topk(min(k, output.shape[1]), dim=1).indices
    return (largest == target.unsqueeze(1)).any(dim=1).mean(dtype=torch.float32)
