"""The task for images whose pixels have classes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from base.base_task import Model, Step, Table
from base.samples import Batch
from trainer.tasks import SupervisedTask, as_images, input_and_target, one_tensor, run_model

AUXILIARY_WEIGHT = 0.5  # as in torchvision's references
NO_CLASS = 255  # in masks
IGNORED = -100  # in targets, as torch's losses have it


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
            loss = loss + AUXILIARY_WEIGHT * self.criterion(auxiliary, target)
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


def overlay(images: Tensor, classes: Tensor) -> Tensor:
    """Images (N, 3, H, W) with the pixels of each class (N, H, W) in a colour; 0 stays as it is."""
    from matplotlib import colormaps

    colors = images.new_tensor(colormaps["tab10"].colors).roll(-3, 0)  # red first
    painted = colors[(classes - 1) % len(colors)].permute(0, 3, 1, 2)
    return torch.where((classes > 0)[:, None], (images + painted) / 2, images)
