"""Your metrics: functions of (output, target, ...) that return the mean over the batch.

A metric that is not a mean over samples (F1, AUROC) is a torchmetrics class, named in the config,
or a function here that is annotated to return one: that is called with the config's arguments.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from utils.config.hints import PositiveInt

if TYPE_CHECKING:
    import torchmetrics


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


def recall(num_classes: PositiveInt) -> "torchmetrics.Metric":
    """The share of each class's samples that are recognised: recall_NG, recall_OK.

    Args:
        num_classes: of the data, if the config does not say
    """
    from torchmetrics.classification import MulticlassRecall  # takes seconds to import

    return MulticlassRecall(num_classes, average=None)


def balanced_accuracy(num_classes: PositiveInt) -> "torchmetrics.Metric":
    """The mean of the classes' recall, which a rare class counts in like a common one.

    Args:
        num_classes: of the data, if the config does not say
    """
    from torchmetrics.classification import MulticlassRecall

    return MulticlassRecall(num_classes, average="macro")


def macro_f1(num_classes: PositiveInt) -> "torchmetrics.Metric":
    """The mean of the classes' F1, the harmonic mean of precision and recall.

    Args:
        num_classes: of the data, if the config does not say
    """
    from torchmetrics.classification import MulticlassF1Score

    return MulticlassF1Score(num_classes, average="macro")
