"""What config, data and network only tell together, tried before anything long starts."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from base import BaseDataLoader, BaseTask
from base.base_task import Step
from base.samples import Batch, count_samples
from model.freezing import set_training_mode
from trainer.evaluate import Meters, Metric
from trainer.features import first_samples
from trainer.tasks import describe
from utils.engine import distributed
from utils.engine.engine import Engine, Running
from utils.engine.randomness import seeded
from utils.errors import Interrupted, RunError, UserError, first_line
from utils.files import ROOT

IGNORED = -100  # torch's default for labels that do not count


class Watched(Running):
    """Notes what the network is called with, what it returns, and whether it fails."""

    def __init__(self, engine: Engine, model: nn.Module):
        super().__init__(engine, model)
        self.inputs: list[tuple] = []  # of each call
        self.output: object = None
        self.is_running = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.inputs.append(args)
        self.is_running = True
        self.output = super().__call__(*args, **kwargs)
        self.is_running = False
        return self.output


def rehearse(
    network: nn.Module,
    loader: BaseDataLoader,
    task: BaseTask,
    metrics: dict[str, Metric],
    engine: Engine,
    training: bool,
) -> tuple[Step, tuple]:
    """Try network, task and metrics on a batch of the first and of the last batch's size.

    With `training` a training step without the optimizer, otherwise an evaluation. Network and
    random numbers are afterwards as they were. On all processes. Returns the first batch's step,
    and what the network was first called with. Raises UserError, which says what does not fit what.
    """
    sizes = {"first": loader.sampler.size(0), "last": loader.sampler.size(len(loader) - 1)}
    if sizes["first"] == sizes["last"]:
        del sizes["last"]
    results = []
    for which, size in sizes.items():
        share = len(range(size)[distributed.rank_slice(size)])
        batch = engine.to_device(first_samples(loader, max(1, share)))
        with unchanged(network, engine.device), torch.set_grad_enabled(training):
            set_training_mode(network) if training else network.eval()
            results.append(_try(network, loader, task, metrics, engine, batch, which))
    return results[0]


def _try(
    network: nn.Module,
    loader: BaseDataLoader,
    task: BaseTask,
    metrics: dict[str, Metric],
    engine: Engine,
    batch: Batch,
    which: str,
) -> tuple[Step, tuple]:
    watched, training = Watched(engine, network), torch.is_grad_enabled()
    place = f"the {which} batch {describe(batch)} in {'training' if training else 'evaluation'}"
    lonely = training and count_samples(batch) == 1 < len(loader.dataset)
    hint = "; set data_loader.args.drop_last to true, or another batch_size" if lonely else ""

    def problem() -> str:
        if watched.is_running:
            return f"arch: {type(network).__name__} cannot take {place}"
        shown = f"the network's output ({describe(watched.output)})"
        return f"{type(task).__name__} and its loss do not fit {place} and {shown}"

    with _explained(problem, hint):
        step = task.step(watched, batch)
    if not isinstance(step, Step):
        returned = f"{type(task).__name__}.step returns {describe(step)}"
        raise UserError(f"task: {returned}; it should return a Step")
    check_outputs(step, loader)
    Meters({}, engine.device).update(step)
    if training:
        with _explained(lambda: f"loss: its gradients cannot be computed for {place}"):
            step.loss.backward()
    parts = f"the output ({describe(step.output)}) and the targets ({describe(step.target)})"
    for name, metric in metrics.items():
        with _explained(lambda name=name: f"{name} does not fit {parts}"):
            meters = Meters({name: metric}, engine.device, loader.classes)
            meters.update(step)
            meters.result()
    return step, watched.inputs[0] if watched.inputs else ()


def check_outputs(step: Step, loader: BaseDataLoader) -> None:
    """Compare a classifier's outputs (N, classes, ...) with the names and labels of all the data.

    Raises UserError if there is not one output per class, or a label without an output.
    """
    output, target = step.output, step.target
    if not (isinstance(output, Tensor) and isinstance(target, Tensor)):
        return
    if output.ndim != target.ndim + 1 or target.is_floating_point():
        return
    count, classes, labels = output.shape[1], loader.classes, known_labels(loader)
    if classes is not None and count != len(classes):
        raise UserError(
            f"arch: the network gives {count} outputs, but there are {len(classes)} classes "
            f"({shorten(classes)}); leave num_classes out, or set it to {len(classes)}"
        )
    labels = target.cpu().numpy() if labels is None else labels
    labels = labels[labels != IGNORED]
    if labels.size and not 0 <= labels.min() <= labels.max() < count:
        found = f"{labels.min()} to {labels.max()}"
        raise UserError(
            f"data_loader: the labels of {loader.subset} are {found}, but the network gives "
            f"{count} outputs, for labels 0 to {count - 1}"
        )


def known_labels(loader: BaseDataLoader) -> np.ndarray | None:
    """The class number of each sample (N,), if the dataset tells them without its samples."""
    whole, targets = loader.samples, loader.dataset.offers.targets
    if isinstance(whole, TensorDataset) and len(whole.tensors) == 2:
        targets = whole.tensors[1].cpu()
    labels = np.asarray([] if targets is None else targets)
    is_class = labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels) == len(whole)
    return labels[loader.dataset.indices] if is_class else None


def shorten(names: list[str]) -> str:
    """Some of the names: "NG, OK", "0, 1, 2, 3, 4, ... 9"."""
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])}, ... {names[-1]}"


@contextmanager
def _explained(problem: Callable[[], str], hint: str = "") -> Iterator[None]:
    """Any error inside becomes a sentence that names the user's line."""
    try:
        yield
    except (UserError, RunError, Interrupted):
        raise
    except Exception as error:  # whatever a user's network, loss or metric does
        frames = traceback.extract_tb(error.__traceback__)
        own = [
            f for f in frames if Path(f.filename).is_relative_to(ROOT) and f.filename != __file__
        ]
        place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
        raise UserError(f"{problem()}: {first_line(error)}{place}{hint}") from error


@contextmanager
def unchanged(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Give the network its modes and buffers back, no gradients, and the generators their state."""
    modes = {module: module.training for module in network.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    devices = [device] if device.type == "cuda" else []
    with seeded("rehearsal"), torch.random.fork_rng(devices):
        try:
            yield
        finally:
            network.zero_grad(set_to_none=True)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for module, mode in modes.items():
                module.training = mode
