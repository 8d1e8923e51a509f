"""What config, data and network only tell together, tried before anything long starts."""

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from base import BaseDataLoader
from base.samples import Batch
from model.freezing import set_training_mode
from model.heads import Output, main_output
from trainer.evaluate import Meters, Metric
from trainer.features import first_samples
from utils.engine import distributed
from utils.engine.engine import Engine
from utils.engine.randomness import seeded
from utils.errors import Interrupted, RunError, UserError, first_line
from utils.files import ROOT

IGNORED = -100  # torch's default for labels that do not count
# torch's losses that compare number by number, and would stretch one of two shapes to the other's
ELEMENTWISE = {"mse", "l1", "smooth_l1", "huber", "poisson_nll", "soft_margin", "hinge_embedding",
               "binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div"}  # fmt: skip


def rehearse(
    network: nn.Module,
    loader: BaseDataLoader,
    loss: Callable[[Output, Tensor], Tensor],
    metrics: dict[str, Metric],
    engine: Engine,
    training: bool,
) -> None:
    """Try network, loss and metrics on a batch of the first and of the last batch's size.

    With `training` a training step without the optimizer, otherwise an evaluation. Network and
    random numbers are afterwards as they were. On all processes. Raises UserError, which says what
    does not fit what.
    """
    sizes = {"first": loader.sampler.size(0), "last": loader.sampler.size(len(loader) - 1)}
    if sizes["first"] == sizes["last"]:
        del sizes["last"]
    for which, size in sizes.items():
        share = len(range(size)[distributed.rank_slice(size)])
        data, target = input_and_target(engine.to_device(first_samples(loader, max(1, share))))
        mode = "training" if training else "evaluation"
        batch = f"the {which} batch ({describe(data)}) in {mode}"
        lonely = training and len(data) == 1 < len(loader.dataset)
        hint = "; set data_loader.args.drop_last to true, or another batch_size" if lonely else ""
        with unchanged(network, engine.device), torch.set_grad_enabled(training):
            set_training_mode(network) if training else network.eval()
            with _explained(f"arch: {type(network).__name__} cannot take {batch}", hint):
                output = engine.forward(network, data)
            outputs = main_output(output)
            check_outputs(outputs, target, loader)
            parts = f"network's output ({describe(outputs)}) and the targets ({describe(target)})"
            with _explained(f"loss does not fit the {parts}"):
                value = loss(output if training else outputs, target)
            Meters({}, engine.device).update(outputs, target, value)
            if training:
                with _explained(f"loss: its gradients cannot be computed for {batch}"):
                    value.backward()
            for name, metric in metrics.items():
                with _explained(f"{name} does not fit the {parts}"):
                    meters = Meters({name: metric}, engine.device, loader.classes)
                    meters.update(outputs, target, value)
                    meters.result()


def input_and_target(batch: Batch) -> tuple[Tensor, Tensor]:
    """A batch's two parts. Raises UserError if it has others."""
    is_pair = isinstance(batch, list | tuple) and len(batch) == 2
    if not (is_pair and all(isinstance(part, Tensor) for part in batch)):
        raise UserError("data_loader: Trainer needs pairs (input, target) of tensors or numbers")
    return batch[0], batch[1]


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


def describe(value: object) -> str:
    """Shape and type of a tensor: "64x10 float32"."""
    if isinstance(value, Tensor):
        shape = "x".join(map(str, value.shape)) or "one number"
        return f"{shape} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def shorten(names: list[str]) -> str:
    """Some of the names: "NG, OK", "0, 1, 2, 3, 4, ... 9"."""
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])}, ... {names[-1]}"


@contextmanager
def _explained(problem: str, hint: str = "") -> Iterator[None]:
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
        raise UserError(f"{problem}: {first_line(error)}{place}{hint}") from error


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
