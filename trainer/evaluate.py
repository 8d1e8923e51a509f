"""The one pass without gradients, and the sums behind every logged number."""

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from utils import distributed
from utils.engine import Engine, without_exchange
from utils.errors import UserError

MOST_NUMBERS_WAITING = 2**20  # of outputs that have not been counted yet: 4 MB


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable,
    criterion: Callable,
    metrics: dict[str, Any],
    engine: Engine,
    each_batch: Callable[[Any, Any, Any], None] | None = None,
) -> dict[str, float]:
    """Loss and metrics of `model` over all samples of `batches`, exactly: a short last batch counts by its size.

    On all processes: each goes through its share, and the numbers are of all. `each_batch(data, target, output)` is
    called for each, for what is to be kept of them. The model is left in the mode (train or eval) it was in. Returns
    "loss" and one number for each metric.
    """
    model = without_exchange(model)
    was_training = model.training
    model.eval()
    meters = Meters(metrics, engine.device)
    try:
        for data, target in map(engine.to_device, batches):
            output = engine.forward(model, data)
            meters.update(output, target, criterion(output, target))
            if each_batch is not None:
                each_batch(data, target, output)
        return meters.result()
    finally:
        model.train(was_training)


class Meters:
    """Sums of the loss and of metrics over batches, kept on the device and read only when asked for.

    Small outputs wait, and are counted many in a row: between a network's large operations, which leave nothing else in
    the caches, small ones take several times as long. Each process counts its own batches; what is read (recent_loss,
    result, state_dict) is of all of them together.

    Args:
        metrics: name -> function of (output, target) that gives the mean over the batch, weighted here by the
            batch's size; or a torchmetrics object, for what is not a mean
        device: where the sums are kept
    """

    def __init__(self, metrics: dict[str, Any], device: torch.device):
        self.functions = {name: m for name, m in metrics.items() if not isinstance(m, nn.Module)}
        # Copies, so that training and validation do not share what is counted.
        self.objects = {name: copy.deepcopy(m) for name, m in metrics.items() if isinstance(m, nn.Module)}
        self.order = list(metrics)
        for metric in self.objects.values():
            metric.reset()
            metric.dist_sync_fn = distributed.gathered
            metric.persistent(True)  # their counts belong into a checkpoint made in the middle of an epoch
        self.count = 0
        self._asked = (0.0, 0)
        self._waiting: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._numbers_waiting = 0
        self.sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in ("loss", *self.functions)}

    def update(self, output: torch.Tensor, target: torch.Tensor, loss: torch.Tensor) -> None:
        """Count one batch. Raises UserError where the loss is not one number."""
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise UserError("loss: should give one number for a batch; set its reduction to mean")
        self.count += len(target)
        self._waiting.append((output.detach(), target, loss.detach()))
        self._numbers_waiting += output.numel()
        if self._numbers_waiting > MOST_NUMBERS_WAITING:
            self._catch_up()

    @torch.no_grad()
    def _catch_up(self) -> None:
        for output, target, loss in self._waiting:
            size = len(target)
            self.sums["loss"].add_(loss.reshape(()), alpha=size)
            for name, function in self.functions.items():
                self.sums[name].add_(function(output, target), alpha=size)
            for metric in self.objects.values():
                metric.update(output, target)
        self._waiting.clear()
        self._numbers_waiting = 0

    def recent_loss(self) -> float:
        """The mean loss since this was last asked. Waits for the device."""
        (total_before, count_before), (count, total, *_) = self._asked, self._totals()
        self._asked = total, count
        return (total - total_before) / max(count - count_before, 1)

    def _totals(self) -> list[float]:
        """The number of samples, and the sums. Afterwards nothing waits."""
        self._catch_up()
        count = torch.full_like(self.sums["loss"], self.count)
        return distributed.total(torch.stack([count, *self.sums.values()])).tolist()

    def result(self) -> dict[str, float]:
        """Loss first, then the metrics in their order. Raises UserError where there was no batch, or one is no number."""
        count, *sums = self._totals()
        if count == 0:
            raise UserError("there are no samples to evaluate")
        values = {name: total / count for name, total in zip(self.sums, sums, strict=True)}
        for name, metric in self.objects.items():
            value = metric.compute()
            if not isinstance(value, torch.Tensor) or value.numel() != 1:
                raise UserError(f'metrics: {name} gives more than one number; set its "average"')
            values[name] = value.item()
        return {name: values[name] for name in ("loss", *self.order)}

    def state_dict(self) -> dict:
        count, *sums = self._totals()
        return {
            "count": int(count),
            "sums": dict(zip(self.sums, sums, strict=True)),
            "objects": {name: _counts(metric) for name, metric in self.objects.items()},
        }

    def load_state_dict(self, state: dict) -> None:
        if not distributed.is_first():  # it has been counted once
            return
        self.count = state["count"]
        for name, total in self.sums.items():
            total.fill_(state["sums"].get(name, math.nan))
        for name, metric in self.objects.items():
            counts = dict(state["objects"][name])
            metric._update_count = counts.pop("_updates")
            metric.load_state_dict(counts)


def _counts(metric: Any) -> dict:
    """What a torchmetrics object has counted on all processes, as its load_state_dict wants it."""
    with metric.sync_context():
        counts = metric.state_dict()
    for name, count in counts.items():  # bringing the processes' lists together makes a tensor of them
        if isinstance(metric._defaults[name], list) and isinstance(count, torch.Tensor):
            counts[name] = [count]
    return counts | {"_updates": metric._update_count}


def progress(batches: Iterable, title: str = "") -> Iterable:
    """The same batches, with a bar where the output is a terminal."""
    return tqdm(batches, desc=title, leave=False, disable=None, dynamic_ncols=True)
