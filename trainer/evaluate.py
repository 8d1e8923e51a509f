"""The one pass without gradients, and the sums behind every logged number."""

import copy
import functools
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from base import BaseTask
from base.base_task import Step
from trainer.tasks import SupervisedTask
from utils.engine import distributed
from utils.engine.engine import Engine, Running, map_tensors, unwrap_ddp
from utils.errors import UserError

# A function of (output, target) that returns the mean over the batch, or a torchmetrics object.
Metric = Callable[[Tensor, Tensor], Tensor]
COUNTED = " samples"  # of what a task logs
MAX_WAITING = 2**20  # numbers in outputs that are not counted yet: 4 MB
# progress(batches, title): the same batches with a bar, if the output is a terminal (disable=None).
progress = functools.partial(tqdm, leave=False, disable=None, dynamic_ncols=True)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable,
    task: BaseTask | Callable[[Tensor, Tensor], Tensor],
    metrics: dict[str, Metric],
    engine: Engine,
    each_step: Callable[[Step], None] | None = None,
    classes: list[str] | None = None,
) -> dict[str, float]:
    """Loss and metrics of `model`, exact over all samples: each batch counts by its size.

    On all processes: each evaluates its share, and the result is that of all samples. A criterion
    instead of a task means `SupervisedTask`. Calls `each_step` for what else is wanted of a batch.
    The model keeps its mode (train or eval). Returns "loss" and the metrics' numbers, see `Meters`.
    """
    task = task if isinstance(task, BaseTask) else SupervisedTask(task)
    model = unwrap_ddp(model)
    networks = [model, *task.networks()]
    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    meters, running = Meters(metrics, engine.device, classes), Running(engine, model)
    try:
        with engine.seeded("evaluation"):  # a task may draw noise: the same in each evaluation
            for batch in map(engine.to_device, batches):
                step = task.step(running, batch)
                meters.update(step)
                if each_step is not None:
                    each_step(step)
        return meters.result()
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)


class Meters:
    """Sums of the loss and of metrics over batches, kept on the device and read only on demand.

    Small outputs wait, and are counted many in a row: between a network's large operations, which
    evict everything else from the caches, small ones take several times as long. Each process
    counts its own batches; recent_loss, result and state_dict are those of all processes.

    Args:
        metrics: name -> function of (output, target) that returns the mean over the batch, weighted
            here by the batch's size; or a torchmetrics object, for what is not a mean
        device: where to keep the sums
        classes: their names, for metrics that give one number per class: recall_NG, recall_OK
    """

    def __init__(
        self, metrics: dict[str, Metric], device: torch.device, classes: list[str] | None = None
    ):
        self.classes = classes
        # Copies, so that training and validation do not share counts.
        self.objects = {k: copy.deepcopy(m) for k, m in metrics.items() if isinstance(m, nn.Module)}
        self.functions = {name: m for name, m in metrics.items() if name not in self.objects}
        for metric in self.objects.values():
            metric.reset()
            metric.dist_sync_fn = distributed.gather_tensors
            metric.persistent(True)  # a checkpoint from the middle of an epoch holds their counts
        self.names, self.count = ["loss", *metrics], 0
        self._last_read = 0, 0.0
        self._waiting: list[Step] = []
        self._numbers_waiting = 0
        self.sums = {"loss": torch.zeros((), dtype=torch.float64, device=device)}
        for name in self.functions:
            self._sum(name)

    def update(self, step: Step) -> None:
        """Count one batch. Raises UserError if the loss is not one number."""
        if not isinstance(step.loss, Tensor):
            kind = type(step.loss).__name__
            raise UserError(f"task: the loss of a step should be a tensor, not a {kind}")
        if step.loss.numel() != 1:
            raise UserError("loss: should give one number for a batch; set its reduction to mean")
        self.count += step.count
        output, log = (map_tensors(part, Tensor.detach) for part in (step.output, step.log))
        self._waiting.append(Step(step.loss.detach(), output, step.target, step.count, log=log))
        self._numbers_waiting += output.numel() if isinstance(output, Tensor) else MAX_WAITING + 1
        if self._numbers_waiting > MAX_WAITING:
            self._count_waiting()

    @torch.no_grad()
    def _count_waiting(self) -> None:
        for step in self._waiting:
            self.sums["loss"].add_(step.loss.reshape(()), alpha=step.count)
            for name, value in step.log.items():  # perhaps not in each batch
                self._sum(name).add_(value, alpha=step.count)
                self._sum(name + COUNTED).add_(step.count)
            for name, function in self.functions.items():
                self.sums[name].add_(function(step.output, step.target), alpha=step.count)
            for metric in self.objects.values():
                metric.update(step.output, step.target)
        self._waiting.clear()
        self._numbers_waiting = 0

    def recent_loss(self) -> float:
        """The mean loss since the last call. Waits for the device."""
        (count_before, loss_before), (count, loss) = self._last_read, self._totals("loss")
        self._last_read = count, loss
        return (loss - loss_before) / max(count - count_before, 1)

    def _totals(self, *names: str) -> list[float]:
        """The number of samples, then the sums of these names, or of all; of all processes.

        Counts what waits.
        """
        self._count_waiting()
        if not names:  # a process without samples does not know what the task logs
            for known in distributed.all_gather(list(self.sums)):
                for name in known:
                    self._sum(name)
        sums = [self.sums[name] for name in names or sorted(self.sums)]
        count = torch.full_like(self.sums["loss"], self.count)
        return distributed.all_reduce_sum(torch.stack([count, *sums])).tolist()

    def _sum(self, name: str) -> Tensor:
        if name not in self.sums:
            self.sums[name] = torch.zeros_like(self.sums["loss"])
        return self.sums[name]

    def result(self) -> dict[str, float]:
        """The loss, then the metrics in their order; one number each, or one per class.

        Raises UserError if nothing was counted, or if a metric gives another number of numbers.
        """
        count, *sums = self._totals()
        if count == 0:
            raise UserError("there are no samples to evaluate")
        totals = dict(zip(sorted(self.sums), sums, strict=True))
        counts = {name: totals.get(name + COUNTED, count) for name in totals}
        values = {k: v / counts[k] for k, v in totals.items() if not k.endswith(COUNTED)}
        values |= {name: metric.compute() for name, metric in self.objects.items()}
        names = dict.fromkeys([*self.names, *values])  # what a task logs comes last
        return {k: v for name in names for k, v in self._named(name, values[name]).items()}

    def _named(self, name: str, value: Tensor | float) -> dict[str, float]:
        if isinstance(value, float):
            return {name: value}
        if isinstance(value, Tensor) and value.numel() == 1:
            return {name: value.item()}
        if isinstance(value, Tensor) and value.ndim == 1:
            classes = self.classes or [str(number) for number in range(len(value))]
            if len(classes) == len(value):
                return {f"{name}_{c}": v for c, v in zip(classes, value.tolist(), strict=True)}
        raise UserError(
            f"metrics: {name} should give one number, or one for each class; it may have an "
            'argument "average"'
        )

    def state_dict(self) -> dict:
        count, *sums = self._totals()
        return {
            "count": int(count),
            "sums": dict(zip(sorted(self.sums), sums, strict=True)),
            "objects": {name: _counts(metric) for name, metric in self.objects.items()},
        }

    def load_state_dict(self, state: dict) -> None:
        if not distributed.is_main():  # the state is the sum over all processes
            return
        self.count = state["count"]
        for name in self.sums | state["sums"]:
            self._sum(name).fill_(state["sums"].get(name, math.nan))
        for name, metric in self.objects.items():
            counts = dict(state["objects"][name])
            metric._update_count = counts.pop("_updates")
            metric.load_state_dict(counts)
            metric.to(self.sums["loss"].device)  # torchmetrics keeps them where they were loaded


def _counts(metric: nn.Module) -> dict:
    """What a torchmetrics object has counted on all processes, for its load_state_dict."""
    with metric.sync_context():
        counts = metric.state_dict()
    for name, value in counts.items():  # gathering turns lists into tensors
        if isinstance(metric._defaults[name], list) and isinstance(value, Tensor):
            counts[name] = [value]
    return counts | {"_updates": metric._update_count}
