"""What config, data and network only tell together, tried before anything long starts."""

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from base import BaseDataLoader, BaseTask
from base.base_task import Step
from base.kept import is_plain
from base.samples import Batch, count_samples
from model.freezing import set_training_mode
from trainer.evaluate import Meters, Metric
from trainer.features import first_samples
from trainer.tasks import IGNORED, describe
from utils.engine import distributed
from utils.engine.engine import Call, Engine, Running, Tensors, unwrap
from utils.errors import UserError, explained

TrainSteps = Callable[[Running, Batch], Iterable[Step]]  # the steps by which a batch is trained
RESERVED = ("loss", "lr", "seconds", "samples_per_second", "epoch", "step")
# torch's losses that compare number by number, and would stretch one of two shapes to the other's
ELEMENTWISE = {"mse", "l1", "smooth_l1", "huber", "poisson_nll", "soft_margin", "hinge_embedding",
               "binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div"}  # fmt: skip


@dataclass
class Rehearsal:
    """Tries network, task and metrics on a batch.

    Attributes:
        place: the batch in words
        hint: what may help if it cannot be taken
        inputs: the network's arguments, of each call: (args, kwargs)
        doubts: lines about the loss
        logged: the names of the numbers that were measured
        optimizers: the sections of those that take a step
    """

    loader: BaseDataLoader
    task: BaseTask
    metrics: dict[str, Metric]
    engine: Engine
    criterion: Callable | None = None  # while the task calls `watched_loss` in its place
    place: str = ""
    hint: str = ""
    inputs: list[Call] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)
    optimizers: list[str] = field(default_factory=list)

    def run(self, network: nn.Module, batch: Batch, train_steps: TrainSteps | None) -> Step:
        """A training step without the optimizers, or an evaluation; see `rehearse`."""
        task, name, criterion = self.task, type(self.task).__name__, self.task.criterion
        if train_steps and count_samples(batch) == 1 < len(self.loader.dataset):
            self.hint = "; set data_loader.args.drop_last to true, or another batch_size"
        steps = train_steps or (lambda model, batch: [task.step(model, batch)])
        model = Watched(self.engine, network, self)
        self.criterion, task.criterion = criterion, self.watched_loss
        try:
            with explained(f"task: {name} does not fit {self.place}", self.hint):
                for step in steps(model, batch):
                    self.check_step(step, name)
        finally:
            task.criterion = criterion
        with explained(f"task: {name} logs what are not numbers"):
            self.measure(step, {})
        parts = f"the output ({describe(step.output)}) and the targets ({describe(step.target)})"
        for name, metric in self.metrics.items():
            with explained(f"{name} does not fit {parts}"):
                self.measure(step, {name: metric})
        return step

    def watched_loss(self, *args: Tensors, **kwargs: Tensors) -> Tensor:
        """The criterion, which says what does not fit."""
        parts = "its arguments"
        if len(args) == 2 and all(isinstance(part, Tensor) for part in args):
            output, target = map(describe, args)
            parts = f"the network's output ({output}) and the targets ({target})"
            check_outputs(*args, self.loader)
            self.doubts = check_loss(self.criterion, *args)
        with explained(f"loss does not fit {parts}"):
            return self.criterion(*args, **kwargs)

    def check_step(self, step: Step, name: str) -> None:
        check_kind(step, name)
        if taken := sorted(set(step.log) & {*RESERVED, *self.metrics}):
            raise UserError(f'task: {name} logs "{taken[0]}", which is logged already')
        Meters({}, self.engine.device).update(step)  # raises unless the loss is one number
        if torch.is_grad_enabled():
            with explained(f"loss: its gradients cannot be computed for {self.place}"):
                step.loss.backward()
        self.optimizers.append(step.optimizer)

    def measure(self, step: Step, metrics: dict[str, Metric]) -> None:
        meters = Meters(metrics, self.engine.device, self.loader.classes)
        meters.update(step)
        self.logged += [key for key in meters.result() if key not in self.logged]


class Watched(Running):
    """A model that notes its inputs, and whose errors name it as the cause."""

    def __init__(self, engine: Engine, model: nn.Module, tried: Rehearsal, whole: bool = True):
        super().__init__(engine, model)
        self._tried, self._whole = tried, whole

    def _wrap(self, part: nn.Module) -> "Watched":
        return Watched(self._engine, part, self._tried, whole=False)

    def __call__(self, *args: Tensors, **kwargs: Tensors) -> Tensors:
        if self._whole:
            self._tried.inputs.append((args, kwargs))
        name = type(unwrap(self._model)).__name__
        with explained(f"arch: {name} cannot take {self._tried.place}", self._tried.hint):
            return super().__call__(*args, **kwargs)


def rehearse(
    network: nn.Module,
    loader: BaseDataLoader,
    task: BaseTask,
    metrics: dict[str, Metric],
    engine: Engine,
    train_steps: TrainSteps | None = None,
) -> tuple[Step, Rehearsal]:
    """Try network, task and metrics on a batch of the first and of the last batch's size.

    With `train_steps`, the steps by which a batch is trained, a training step without the
    optimizers, otherwise an evaluation. Networks and random numbers are afterwards as they were. On
    all processes. Returns the first batch's step, and what was seen of the network. Raises
    UserError, which says what does not fit what.
    """
    training, networks, results = train_steps is not None, [network, *task.networks()], []
    first, last = loader.sampler.size(0), loader.sampler.size(len(loader) - 1)
    for which, size in [("first", first), ("last", last)][: 1 + (first != last)]:
        share = len(range(size)[distributed.rank_slice(size)])
        batch = engine.to_device(first_samples(loader, max(1, share)))
        mode = "training" if training else "evaluation"
        place = f"the {which} batch {describe(batch)} in {mode}"
        tried, same = Rehearsal(loader, task, metrics, engine, place=place), unchanged(networks)
        with engine.seeded("rehearsal"), same, unchanged_values(task):
            for one in networks:
                set_training_mode(one) if training else one.eval()
            with torch.set_grad_enabled(training):
                results.append((tried.run(network, batch, train_steps), tried))
    return results[0]


def check_kind(step: object, name: str) -> None:
    """Raises UserError if the task `name` gave something else than a Step."""
    if not isinstance(step, Step):
        raise UserError(f"task: {name}.step gives {describe(step)}; it should give a Step")


def check_outputs(output: Tensor, target: Tensor, loader: BaseDataLoader) -> None:
    """Compare a classifier's outputs (N, classes, ...) with the names and labels of all the data.

    Raises UserError if there is not one output per class, or a label without an output.
    """
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


def check_loss(criterion: Callable, output: Tensor, target: Tensor) -> list[str]:
    """Compare what a loss of torch takes with an output and its targets.

    Returns a line for what is probably not meant. Raises UserError where the loss would be computed
    and mean nothing.
    """
    name = getattr(getattr(criterion, "func", criterion), "__name__", type(criterion).__name__)
    words = re.sub(r"(?<=[a-z1])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    words = words.replace("bce", "binary_cross_entropy").removesuffix("_loss")
    if words in ELEMENTWISE and output.shape != target.shape:
        raise UserError(
            f"loss: {name} compares number by number, but the network's output is "
            f"{describe(output)} and the targets are {describe(target)}"
        )
    if output.ndim != 2 or output.shape[1] < 2 or not output.is_floating_point():
        return []
    if words == "nll" and (output.exp().sum(1) - 1).abs().max() > 0.01:
        raise UserError(
            f"loss: {name} takes the logarithms of probabilities, which the network's outputs are "
            "not; cross_entropy takes any"
        )
    if words == "cross_entropy" and output.min() >= 0 and (output.sum(1) - 1).abs().max() < 1e-4:
        return [f"the network gives probabilities, and {name} takes the softmax of them once more: "
                "leave the softmax out of the network"]  # fmt: skip
    return []


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
def unchanged_values(task: BaseTask) -> Iterator[None]:
    """Give a task its numbers and tensors back; networks that it holds are not its values."""
    before = {k: copy.deepcopy(v) for k, v in vars(task).items() if is_plain(v)}
    try:
        yield
    finally:
        for parameter in task.parameters():
            parameter.grad = None
        for name in [k for k, v in vars(task).items() if is_plain(v) and k not in before]:
            delattr(task, name)
        vars(task).update(before)


@contextmanager
def unchanged(networks: list[nn.Module]) -> Iterator[None]:
    """Give networks their modes and buffers back afterwards, and no gradients."""
    modes = {module: module.training for one in networks for module in one.modules()}
    buffers = [(buffer, buffer.clone()) for one in networks for buffer in one.buffers()]
    try:
        yield
    finally:
        for network in networks:
            network.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for module, mode in modes.items():
            module.training = mode
