"""The task for samples that may have several classes at once."""

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from base.base_task import Model, Step, Table
from base.samples import Batch
from trainer.tasks import SupervisedTask, as_images, input_and_target, one_tensor, run_model


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


def _named(chosen: Tensor, names: list[str]) -> list[str]:
    """The names of each sample's classes (N, classes): "3, 7"."""
    rows = chosen.tolist()
    return [", ".join(n for n, yes in zip(names, row, strict=True) if yes) for row in rows]


def _classes(columns: dict[str, list]) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Each class's name, whether it is there (N,), and its probability (N,)."""
    names = [name.removeprefix("is ") for name in columns if name.startswith("is ")]
    return [(n, np.array(columns[f"is {n}"]), np.array(columns[f"p({n})"])) for n in names]
