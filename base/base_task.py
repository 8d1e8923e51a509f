from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from base.samples import Batch
from utils.engine.engine import Running, Tensors, unwrap
from utils.errors import UserError

Model = Callable[..., Tensors]  # a network as it runs on the device, in the chosen precision
Table = list[list]  # rows of cells; the first is the header


def no_loss(*args: Tensors, **kwargs: Tensors) -> Tensor:
    """Stands in for the loss of a config without one. Raises UserError."""
    raise UserError('loss: the task needs one, and the config has no section "loss"')


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
        optimizer: the section of the optimizer that takes a step by this loss
    """

    loss: Tensor
    output: Tensors
    target: Tensors
    count: int
    data: Tensors = None
    log: dict[str, Tensor] = field(default_factory=dict)
    optimizer: str = "optimizer"


class BaseTask(ABC):
    """Says what a batch means: write `step`. Training, validation, test and pruning all call it.

    A subclass's constructor takes `criterion` and passes it on; each keyword it adds is a key in
    the config's section "task". Whatever it stores that has a `state_dict` is kept in checkpoints.

    The rest is for the test's report, and may be left out: a table of all samples, the worst of
    them as images, summaries and charts of the table's columns.

    Args:
        criterion: what the config's section "loss" names

    Attributes:
        classes: their names, if the data has any
        decided: what `decide` has chosen; None before that
        classifies: False if outputs (N, K) with class numbers as targets are not class scores,
            but embeddings, say
        worst: the samples to be shown first, by a column: "min iou", "max error"
        charts: pairs of columns to be drawn as points: ("true", "predicted")
        not_kept: attributes that checkpoints need not hold, as they can be made again
        original: in a run that changes its network, the checkpoint from before; not there at first
    """

    worst: ClassVar[str | None] = None
    charts: ClassVar[tuple[tuple[str, str], ...]] = ()
    not_kept: ClassVar[tuple[str, ...]] = ("classes", "decided", "original")
    classifies: ClassVar[bool] = True
    classes: list[str] | None = None
    decided: dict | None = None
    original: Path | None = None

    def __init__(self, criterion: Callable | None = None):
        self.criterion = no_loss if criterion is None else criterion

    @abstractmethod
    def step(self, model: Model, batch: Batch) -> Step:
        """Call the model on a batch, as often as it takes, and return the loss and the rest.

        The same in training and evaluation; `torch.is_grad_enabled()` and `model.training` tell
        them apart. The batch is on the device. Raises UserError for a batch it does not understand.
        """

    def train_steps(self, model: Model, batch: Batch) -> Iterator[Step]:
        """The steps by which a batch is trained: where several optimizers take turns, one for each.

        After each `yield` the optimizer that the step names has taken its step.
        """
        yield self.step(model, batch)

    def networks(self) -> list[nn.Module]:
        """The networks that it holds beside the model."""
        held = (value for name, value in vars(self).items() if name not in self.not_kept)
        return [unwrap(value) for value in held if isinstance(value, nn.Module | Running)]

    def parameters(self) -> list[nn.Parameter]:
        """Those that it holds itself, or its loss; the model's optimizer trains them, too.

        Networks that a section of the config names have optimizers of their own.
        """
        held: list[nn.Parameter] = []
        for name, value in vars(self).items():
            parts = value if isinstance(value, list | tuple) else [value]
            parts = value.values() if isinstance(value, dict) else parts
            for part in parts if name not in self.not_kept else ():
                held += part.parameters() if isinstance(part, nn.Module) else ()
                held += [part] if isinstance(part, nn.Parameter) else []
        return [parameter for parameter in held if parameter.requires_grad]

    def columns(self, step: Step) -> dict[str, Sequence]:
        """What predictions.csv says of each sample of a batch: column -> values (N)."""
        return {}

    def images(self, step: Step) -> Tensor | None:
        """Images (N, 3, H, W) of 0 to 1 that show each sample's input and answer."""
        return None

    def tables(self, columns: dict[str, list]) -> dict[str, Table]:
        """Summaries of the columns of all samples, by title."""
        return {}

    def decide(self, columns: dict[str, list]) -> dict:
        """What is chosen on the columns of the validation samples, as plain data: thresholds, say.

        Called before the first test; kept in the checkpoint, and stored in `decided`.
        """
        return {}
