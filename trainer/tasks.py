"""What a batch means, for the usual tasks. A config names one in its section "task"."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from base import BaseTask
from base.base_task import Model, Step
from base.samples import Batch
from utils.engine.engine import Tensors
from utils.errors import UserError

AUXILIARY_WEIGHT = 0.3
Inputs = Tensor | Sequence[Tensor] | dict[str, Tensor]  # of a network


class SupervisedTask(BaseTask):
    """Pairs (input, target): the loss compares the network's output with the target.

    The input is a tensor, a tuple of the network's arguments, or a dict of them by name.
    """

    def step(self, model: Model, batch: Batch) -> Step:
        data, target = input_and_target(batch)
        output = one_tensor(self, run_model(model, data))
        return Step(self.criterion(output, target), output, target, len(target), data)

    def class_names(self, count: int) -> list[str]:
        """The data's names of `count` classes, else their numbers."""
        fits = self.classes is not None and len(self.classes) == count
        return self.classes if fits else [str(number) for number in range(count)]


class AuxiliaryHeadsTask(SupervisedTask):
    """Pairs; in training the network's further outputs count 0.3 (Szegedy et al., arXiv:1409.4842).

    The default for networks with auxiliary heads: GoogLeNet and Inception.
    """

    def step(self, model: Model, batch: Batch) -> Step:
        data, target = input_and_target(batch)
        output = run_model(model, data)
        main, *others = [output] if isinstance(output, Tensor) else output
        loss = self.criterion(main, target)
        for extra in others:
            if extra is not None:
                loss = loss + AUXILIARY_WEIGHT * self.criterion(extra, target)
        return Step(loss, main, target, len(target), data)


class LossTask(SupervisedTask):
    """Pairs, for a trainer that defines `loss(output, target)`, whatever the output is."""

    def step(self, model: Model, batch: Batch) -> Step:
        data, target = input_and_target(batch)
        output = run_model(model, data)
        main = output if isinstance(output, Tensor) else output[0]
        return Step(self.criterion(output, target), main, target, len(target), data)


def fitting_task(network: nn.Module) -> type[BaseTask]:
    """The task for a network whose config names none."""
    has_heads = any(name.lower().startswith("aux") for name, _ in network.named_children())
    return AuxiliaryHeadsTask if has_heads else SupervisedTask


def input_and_target(batch: Batch) -> tuple[Inputs, Tensor]:
    """A batch's two parts. Raises UserError if it has others."""
    if isinstance(batch, list | tuple) and len(batch) == 2 and isinstance(batch[1], Tensor):
        parts = batch[0].values() if isinstance(batch[0], dict) else batch[0]
        parts = [parts] if isinstance(parts, Tensor) else parts
        if isinstance(parts, Iterable) and all(isinstance(part, Tensor) for part in parts):
            return batch[0], batch[1]
    raise UserError(
        f"data_loader: the task needs pairs (input, target) of tensors or numbers, not "
        f"{describe(batch)}; for other batches write a task, see docs/config.md"
    )


def run_model(model: Model, inputs: Inputs) -> Tensors:
    """The network's output for a tensor, for several arguments in order, or for some by name."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(inputs) if isinstance(inputs, Tensor) else model(*inputs)


def one_tensor(task: BaseTask, output: Tensors) -> Tensor:
    """The network's output. Raises UserError if it is anything but a tensor."""
    if not isinstance(output, Tensor):
        raise UserError(
            f"task: {type(task).__name__} takes one tensor from the network, not "
            f"{describe(output)}; write a task of your own, see docs/config.md"
        )
    return output


def as_images(data: Tensors) -> Tensor | None:
    """What a network saw as images (N, 3, H, W), each scaled to 0..1; None if it was no images."""
    if not (isinstance(data, Tensor) and data.ndim == 4 and data.shape[1] in (1, 3)):
        return None
    low, high = (edge(data.float(), (1, 2, 3), keepdim=True) for edge in (torch.amin, torch.amax))
    return ((data - low) / (high - low).clamp(min=1e-12)).expand(-1, 3, -1, -1)


def describe(value: object) -> str:
    """What a batch or an output is: "64x10 float32", "(64x3x32x32 float32, 64 int64)"."""
    if isinstance(value, Tensor):
        shape = "x".join(map(str, value.shape)) or "one number"
        return f"{shape} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {describe(part)}' for key, part in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(describe, value))})"
    return type(value).__name__
