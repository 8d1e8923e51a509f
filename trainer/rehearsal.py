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
from trainer.tasks import describe
from utils.engine import distributed
from utils.engine.engine import Call, Engine, Running, Tensors, unwrap
from utils.errors import UserError, explained

RESERVED = ("loss", "lr", "seconds", "samples_per_second", "epoch", "step")
IGNORED = -100  # torch's default for labels that do not count
# torch's losses that compare number by number, and would stretch one of two shapes to the other's
ELEMENTWISE = {"mse", "l1", "smooth_l1", "huber", "poisson_nll", "soft_margin", "hinge_embedding",
               "binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div"}  # fmt: skip


@dataclass
class Tried:
    """What a rehearsal saw of a batch.

    Attributes:
        place: the batch in words
        hint: what may help if it cannot be taken
        inputs: the network's arguments, of each call: (args, kwargs)
        doubts: lines about the loss
        logged: the names of the numbers that were measured
        optimizers: the sections of those that take a step
    """

    place: str
    hint: str
    inputs: list[Call] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)
    optimizers: list[str] = field(default_factory=list)

    def watch_loss(self, criterion: Callable, loader: BaseDataLoader) -> Callable:
        """The criterion, which then says what does not fit."""

        def watched(*args: Tensors, **kwargs: Tensors) -> Tensor:
            parts = "its arguments"
            if len(args) == 2 and all(isinstance(part, Tensor) for part in args):
                output, target = map(describe, args)
                parts = f"the network's output ({output}) and the targets ({target})"
                check_outputs(*args, loader)
                self.doubts = check_loss(criterion, *args)
            with explained(f"loss does not fit {parts}"):
                return criterion(*args, **kwargs)

        return watched


class Watched(Running):
    """A model that notes its inputs, and says that it is at fault when it fails."""

    def __init__(self, engine: Engine, model: nn.Module, tried: Tried, whole: bool = True):
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
    train_steps: Callable[[Running, Batch], Iterable[Step]] | None = None,
) -> tuple[Step, Tried]:
    """Try network, task and metrics on a batch of the first and of the last batch's size.

    With `train_steps`, the steps by which a batch is trained, a training step without the
    optimizers, otherwise an evaluation. Networks and random numbers are afterwards as they were. On
    all processes. Returns the first batch's step, and what was seen of the network. Raises
    UserError, which says what does not fit what.
    """
    training = train_steps is not None
    sizes = {"first": loader.sampler.size(0), "last": loader.sampler.size(len(loader) - 1)}
    if sizes["first"] == sizes["last"]:
        del sizes["last"]
    results = []
    for which, size in sizes.items():
        share = len(range(size)[distributed.rank_slice(size)])
        batch = engine.to_device(first_samples(loader, max(1, share)))
        mode = "training" if training else "evaluation"
        lonely = training and count_samples(batch) == 1 < len(loader.dataset)
        hint = "; set data_loader.args.drop_last to true, or another batch_size" if lonely else ""
        tried = Tried(f"the {which} batch {describe(batch)} in {mode}", hint)
        model = Watched(engine, network, tried)
        networks = [network, *task.networks()]
        random = engine.seeded("rehearsal")
        same = unchanged(networks), unchanged_values(task)
        with random, same[0], same[1], torch.set_grad_enabled(training):
            for one in networks:
                set_training_mode(one) if training else one.eval()
            steps = train_steps or (lambda model, batch: [task.step(model, batch)])
            results.append((_try(tried, model, batch, loader, task, steps, metrics, engine), tried))
    return results[0]


def _try(
    tried: Tried,
    model: Watched,
    batch: Batch,
    loader: BaseDataLoader,
    task: BaseTask,
    steps: Callable[[Running, Batch], Iterable[Step]],
    metrics: dict[str, Metric],
    engine: Engine,
) -> Step:
    name, criterion = type(task).__name__, task.criterion
    if criterion is not None:
        task.criterion = tried.watch_loss(criterion, loader)
    try:
        hint = tried.hint if criterion else '; the config has no section "loss"'
        with explained(f"task: {name} does not fit {tried.place}", hint):
            for step in steps(model, batch):
                _check_step(step, name, tried.place, metrics, engine)
                tried.optimizers.append(step.optimizer)
    finally:
        task.criterion = criterion
    with explained(f"task: {name} logs what are not numbers"):
        meters = Meters({}, engine.device)
        meters.update(step)
        tried.logged += meters.result()
    parts = f"the output ({describe(step.output)}) and the targets ({describe(step.target)})"
    for name, metric in metrics.items():
        with explained(f"{name} does not fit {parts}"):
            meters = Meters({name: metric}, engine.device, loader.classes)
            meters.update(step)
            tried.logged += [key for key in meters.result() if key not in tried.logged]
    return step


def check_kind(step: object, name: str) -> None:
    """Raises UserError if the task `name` gave something else than a Step."""
    if not isinstance(step, Step):
        raise UserError(f"task: {name}.step gives {describe(step)}; it should give a Step")


def _check_step(
    step: Step, name: str, place: str, metrics: dict[str, Metric], engine: Engine
) -> None:
    check_kind(step, name)
    if taken := sorted(set(step.log) & {*RESERVED, *metrics}):
        raise UserError(f'task: {name} logs "{taken[0]}", which is logged already')
    Meters({}, engine.device).update(step)  # raises unless the loss is one number
    if torch.is_grad_enabled():
        with explained(f"loss: its gradients cannot be computed for {place}"):
            step.loss.backward()


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
        for name, value in list(vars(task).items()):
            if name in before:
                setattr(task, name, before[name])
            elif name not in before and is_plain(value):
                delattr(task, name)


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
