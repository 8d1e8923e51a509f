from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from base.samples import Batch

Model = Callable[..., Any]  # a network as it runs on the device, in the chosen precision


@dataclass
class Step:
    """What a task makes of a batch.

    Attributes:
        loss: one number, the mean over the samples
        output: what metrics take, and what predictions are made of; of a classifier (N, classes)
        target: what metrics compare it with
        count: samples in the batch
        data: what the network was shown; if these are images, reports show them
        log: further numbers to be logged, means over the batch, by name
    """

    loss: Tensor
    output: Any
    target: Any
    count: int
    data: Any = None
    log: dict[str, Tensor] = field(default_factory=dict)


class BaseTask(ABC):
    """Says what a batch means: write `step`. Training, validation, test and pruning all call it.

    A subclass's constructor takes `criterion` and passes it on; each keyword it adds is a key in
    the config's section "task".

    Args:
        criterion: what the config's section "loss" names
    """

    def __init__(self, criterion: Callable | None = None):
        self.criterion = criterion

    @abstractmethod
    def step(self, model: Model, batch: Batch) -> Step:
        """Call the model on a batch, as often as it takes, and return the loss and the rest.

        The same in training and evaluation; `torch.is_grad_enabled()` and `model.training` tell
        them apart. The batch is on the device. Raises UserError for a batch it does not understand.
        """
