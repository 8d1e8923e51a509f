"""What a batch means, for the usual tasks. A config names one in its section "task"."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from base import BaseTask
from base.base_task import Model, Step, Table
from base.samples import Batch
from utils.engine.engine import Tensors
from utils.errors import UserError

AUXILIARY_WEIGHT = 0.3
SEGMENTATION_WEIGHT = 0.5  # of an auxiliary head, as in torchvision's references
NO_CLASS = 255  # in masks
IGNORED = -100  # in targets, as torch's losses have it
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


class RegressionTask(SupervisedTask):
    """Numbers (N,), (N, 1) or several per sample (N, k), of the network and as targets.

    (N, 1) counts as (N,), so that losses and metrics compare number by number.
    """

    worst = "max error"
    charts = (("true", "predicted"), ("predicted", "residual"))

    def step(self, model: Model, batch: Batch) -> Step:
        data, target = input_and_target(batch)
        output = _flat(one_tensor(self, run_model(model, data)))
        target = _flat(target.float())
        return Step(self.criterion(output, target), output, target, len(target), data)

    def columns(self, step: Step) -> dict[str, Sequence]:
        """True and predicted values, their difference, and its size (the mean of several)."""
        output, target = step.output.float(), step.target
        residual = output - target
        values = {"true": target, "predicted": output, "residual": residual}
        if output.ndim == 1:
            return {**values, "error": residual.abs()}
        columns = {
            f"{name} {number}": column
            for name, numbers in values.items()
            for number, column in enumerate(numbers.flatten(1).unbind(1))
        }
        return {**columns, "error": residual.abs().flatten(1).mean(1)}


class SegmentationTask(SupervisedTask):
    """A class for each pixel: output (N, classes, H, W), targets (N, H, W) of class numbers.

    Networks of torchvision give {"out", "aux"}; their auxiliary head counts 0.5 in training. Pixels
    of 255 do not count: in targets they become -100, as torch's losses have it.
    """

    worst = "min iou"

    def step(self, model: Model, batch: Batch) -> Step:
        data, target = input_and_target(batch)
        target = target.masked_fill(target == NO_CLASS, IGNORED)
        output, auxiliary = run_model(model, data), None
        if isinstance(output, dict):
            output, auxiliary = output.get("out"), output.get("aux")
        output = one_tensor(self, output)
        loss = self.criterion(output, target)
        if auxiliary is not None and model.training:
            loss = loss + SEGMENTATION_WEIGHT * self.criterion(auxiliary, target)
        return Step(loss, output, target, len(target), data)

    def columns(self, step: Step) -> dict[str, Sequence]:
        """Each image's mean IoU over the classes that it has, in truth or prediction, and the
        pixels of each class's intersection and union."""
        output, target = step.output, step.target
        predicted = output.argmax(1).masked_fill(target == IGNORED, IGNORED)
        both, either = {}, {}
        for number, name in enumerate(self.class_names(output.shape[1])):
            true, found = ((part == number).flatten(1) for part in (target, predicted))
            both[f"both {name}"] = (true & found).sum(1)
            either[f"either {name}"] = (true | found).sum(1)
        shares = torch.stack([*both.values()]) / torch.stack([*either.values()])
        return {"iou": shares.nanmean(0), **both, **either}

    def images(self, step: Step) -> Tensor | None:
        """The image, the same under its true classes, and under the predicted ones."""
        images = as_images(step.data)
        if images is None:
            return None
        classes = (step.target, step.output.argmax(1))
        parts = [images, *(overlay(images, numbers) for numbers in classes)]
        return torch.cat([F.pad(part, (0, 4), value=1.0) for part in parts], 3)[..., :-4]

    def tables(self, columns: dict[str, list]) -> dict[str, Table]:
        """The IoU of each class over all pixels of all images."""
        names = [name.removeprefix("both ") for name in columns if name.startswith("both ")]
        rows: Table = [["class", "IoU", "images with it"]]
        for name in names:
            both, either = columns[f"both {name}"], columns[f"either {name}"]
            iou = sum(both) / sum(either) if sum(either) else None
            rows.append([name, iou, sum(count > 0 for count in either)])
        return {"Classes": rows}


class MultiLabelTask(SupervisedTask):
    """Any number of classes per sample: output (N, classes), targets (N, classes) of 0 and 1.

    The loss gets the network's output, metrics its sigmoid. A class is predicted from its threshold
    on, which the first test chooses: that of the largest F1 on the validation samples.
    """

    worst = "max loss"

    def step(self, model: Model, batch: Batch) -> Step:
        data, target = input_and_target(batch)
        output = one_tensor(self, run_model(model, data))
        loss = self.criterion(output, target.float())
        return Step(loss, output.float().sigmoid(), (target >= 0.5).long(), len(target), data)

    def columns(self, step: Step) -> dict[str, Sequence]:
        """The names of the true and of the predicted classes, the cross entropy of the sample, and
        for each class whether it is there, and its probability."""
        probability, target = step.output, step.target
        names = self.class_names(probability.shape[1])
        thresholds = probability.new_tensor([self._threshold(name) for name in names])
        loss = F.binary_cross_entropy(probability, target.float(), reduction="none").mean(1)
        columns = {
            "true": _named(target == 1, names),
            "predicted": _named(probability >= thresholds, names),
            "loss": loss,
        }
        columns |= {f"p({name})": probability[:, number] for number, name in enumerate(names)}
        return columns | {f"is {name}": target[:, number] for number, name in enumerate(names)}

    def images(self, step: Step) -> Tensor | None:
        """What the network saw."""
        return as_images(step.data)

    def decide(self, columns: dict[str, list]) -> dict:
        """{"thresholds": {class: the one of the largest F1}}; 0.5 for a class without samples."""
        from sklearn.metrics import precision_recall_curve  # takes seconds to import

        thresholds = {}
        for name, is_there, probability in _classes(columns):
            thresholds[name] = 0.5
            if is_there.any():
                precision, recall, cuts = precision_recall_curve(is_there, probability)
                f1 = precision * recall / np.maximum(precision + recall, 1e-12)
                thresholds[name] = float(cuts[f1[:-1].argmax()])
        return {"thresholds": thresholds}

    def tables(self, columns: dict[str, list]) -> dict[str, Table]:
        """The figures of each class, at its threshold."""
        from sklearn.metrics import average_precision_score, precision_recall_fscore_support

        rows: Table = [["class", "AP", "threshold", "precision", "recall", "F1", "samples"]]
        for name, is_there, probability in _classes(columns):
            threshold, count = self._threshold(name), int(is_there.sum())
            found = probability >= threshold
            scores = precision_recall_fscore_support(
                is_there, found, average="binary", zero_division=0
            )
            ap = float(average_precision_score(is_there, probability)) if count else None
            rows.append([name, ap, threshold, *map(float, scores[:3]), count])
        return {"Classes": rows}

    def _threshold(self, name: str) -> float:
        return self.decided["thresholds"].get(name, 0.5) if self.decided else 0.5


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


def _flat(numbers: Tensor) -> Tensor:
    return numbers.squeeze(1) if numbers.shape[1:] == (1,) else numbers


def overlay(images: Tensor, classes: Tensor) -> Tensor:
    """Images (N, 3, H, W) with the pixels of each class (N, H, W) in a colour; 0 stays as it is."""
    from matplotlib import colormaps

    colors = images.new_tensor(colormaps["tab10"].colors).roll(-3, 0)  # red first
    painted = colors[(classes - 1) % len(colors)].permute(0, 3, 1, 2)
    return torch.where((classes > 0)[:, None], (images + painted) / 2, images)


def _named(chosen: Tensor, names: list[str]) -> list[str]:
    """The names of each sample's classes (N, classes): "3, 7"."""
    rows = chosen.tolist()
    return [", ".join(n for n, yes in zip(names, row, strict=True) if yes) for row in rows]


def _classes(columns: dict[str, list]) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Each class's name, whether it is there (N,), and its probability (N,)."""
    names = [name.removeprefix("is ") for name in columns if name.startswith("is ")]
    return [(n, np.array(columns[f"is {n}"]), np.array(columns[f"p({n})"])) for n in names]
