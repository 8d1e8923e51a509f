"""Your losses: functions of (output, target, ...) or nn.Modules. A config can name torch's too."""

import torch.nn.functional as F
from torch import Tensor

from utils.config.hints import PositiveFloat


def focal_loss(
    output: Tensor, target: Tensor, gamma: PositiveFloat = 2.0, weight: Tensor | None = None
) -> Tensor:
    """Cross entropy that counts samples less the surer they are right; for rare classes.

    Lin et al., arXiv:1708.02002.

    Args:
        output: logits or log-probabilities (N, classes)
        target: class numbers (N,)
        gamma: how much less sure samples count; 0 would be cross entropy
        weight: one factor per class
    """
    cross_entropy = F.cross_entropy(output, target, reduction="none")
    losses = (1 - (-cross_entropy).exp()) ** gamma * cross_entropy
    if weight is None:
        return losses.mean()
    return (losses * weight[target]).sum() / weight[target].sum()
