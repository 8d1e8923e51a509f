"""Your losses: functions of (output, target, ...) or torch.nn.Modules. All of torch's are known by name already."""

import torch.nn.functional as F
from torch import Tensor

from utils.hints import PositiveFloat


def focal_loss(output: Tensor, target: Tensor, gamma: PositiveFloat = 2.0, weight: Tensor | None = None) -> Tensor:
    """Cross entropy that counts what is already right less; for rare classes. Lin et al., arXiv:1708.02002.

    Args:
        output: logits or log-probabilities (N, classes)
        target: class numbers (N,)
        gamma: how much less; 0 would be cross entropy
        weight: one factor for each class
    """
    log_probability = -F.cross_entropy(output, target, reduction="none")
    losses = -((1 - log_probability.exp()) ** gamma) * log_probability
    return losses.mean() if weight is None else (losses * weight[target]).sum() / weight[target].sum()
