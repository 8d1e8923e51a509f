"""What a classifier predicts for each sample, and the statistics of it."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from base.base_task import Step
from logger.files import write_csv
from tester.appearance import appearance
from trainer.decisions import calibrated, class_number, counts, decided

KEPT = 200  # mistakes
LARGEST_TABLE = 20_000_000  # probabilities that are written
SHOWN_MISTAKES, SHOWN_SUSPECTS = 24, 12  # in the page
UNSURE = "unsure"  # the decision to ask a person


class Predictions:
    """What a classifier predicts for each sample. `add` is evaluate()'s hook; read the rest when
    all batches are added.

    `names` are lists of class names; the first with one name per output is used. `inspection` has
    the target and the threshold by which is decided; without it the likeliest class is taken.

    Attributes:
        is_classification: False once an output is not (N, classes) or a target not a class
            number; nothing is kept then
        classes: the class names
        targets: class numbers (N,)
        probabilities: (N, classes)
        predicted: the numbers of the classes decided on (N,)
        mistakes: positions of the 200 most confident wrong predictions, the most confident first
        images: what the network saw of these, if it was images: position -> (1 or 3, H, W)
        distances: how unlike the training data each is, see `tester.novelty` (N,); or None
        appearance: of images, with an inspection, see `tester.appearance` (N, 5); or None
    """

    distances: np.ndarray | None = None

    def __init__(self, *names: list[str] | None, inspection: dict | None = None):
        self._names, self._inspection = names, inspection
        self._targets: list[Tensor] = []
        self._probabilities: list[Tensor] = []
        self._appearance: list[Tensor] = []
        self._ranked: list[tuple[float, int, Tensor | None]] = []  # mistakes, by -confidence
        self._count = 0
        self.classes: list[str] = []
        self.mistakes: list[int] = []
        self.images: dict[int, Tensor] = {}
        self.is_classification = True

    def add(self, step: Step) -> None:
        """Add one batch."""
        data, target, output = step.data, step.target, step.output
        counts = [len(names) for names in self._names if names]  # a task may embed, not classify
        self.is_classification = (
            self.is_classification
            and is_classification(target, output)
            and (not counts or output.shape[1] in counts)
        )
        if not self.is_classification:
            return
        self.classes = class_names(output.shape[1], *self._names)
        # softmax of log-probabilities gives the probabilities again
        probability, target = output.detach().float().softmax(1).cpu(), target.cpu().long()
        predicted = self._decided(probability)
        confidence = probability.gather(1, predicted[:, None])[:, 0]
        wrong = (predicted != target).nonzero().flatten()
        images = [None] * len(wrong)
        if isinstance(data, Tensor) and is_image(data.shape[1:]):
            if self._inspection is not None:
                self._appearance.append(appearance(data.detach()))
            images = [image.clone() for image in data.detach()[wrong].cpu()]
        columns = (-confidence[wrong]).tolist(), (wrong + self._count).tolist(), images
        ranked = [*self._ranked, *zip(*columns, strict=True)]
        self._ranked = sorted(ranked, key=lambda entry: entry[:2])[:KEPT]
        self.mistakes = [position for _, position, _ in self._ranked]
        self.images = {p: image for _, p, image in self._ranked if image is not None}
        self._targets.append(target)
        self._probabilities.append(probability)
        self._count += len(target)

    def add_distances(self, batches: list[Tensor]) -> None:
        """Add the distances of all samples; left out if they are not one for each."""
        if self._targets and sum(map(len, batches)) == self._count:
            self.distances = torch.cat(batches).cpu().numpy()

    @functools.cached_property
    def appearance(self) -> np.ndarray | None:
        return torch.cat(self._appearance).numpy() if self._appearance else None

    @functools.cached_property
    def targets(self) -> np.ndarray:
        return torch.cat(self._targets).numpy()

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        return torch.cat(self._probabilities).numpy()

    @functools.cached_property
    def predicted(self) -> np.ndarray:
        return self._decided(torch.cat(self._probabilities)).numpy()

    def _decided(self, probability: Tensor) -> Tensor:
        if self._inspection is None:
            return probability.argmax(1)
        number = class_number(self._inspection["target"], self.classes)
        return decided(probability, number, self._inspection["threshold"])

    def for_class(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Each sample's probability of the class `name`, and whether it is of it: both (N,).

        Raises UserError if there is no such class.
        """
        number = class_number(name, self.classes)
        return self.probabilities[:, number], self.targets == number

    def columns(self) -> dict[str, list]:
        """The columns of a table: each sample's true and predicted class, and the probability of
        each class; where that were too many numbers, of these two classes alone. With an inspection
        also "confidence", how often such an answer is right by the validation data, and "decision",
        which may be to ask a person; and "distance".
        """
        names, inspection = np.array(self.classes), self._inspection or {}
        predicted, probabilities = names[self.predicted], self.probabilities
        columns = {"true": names[self.targets].tolist(), "predicted": predicted.tolist()}
        if probabilities.size > LARGEST_TABLE:
            for name, numbers in ("true", self.targets), ("predicted", self.predicted):
                columns[f"p({name})"] = probabilities[np.arange(len(numbers)), numbers].tolist()
        else:
            for number, name in enumerate(self.classes):
                columns[f"p({name})"] = probabilities[:, number].tolist()
        if "temperature" in inspection:
            own = calibrated(torch.from_numpy(probabilities), inspection["temperature"]).numpy()
            columns["confidence"] = own[np.arange(len(own)), self.predicted].tolist()
        if "sure_threshold" in inspection:
            probability, _ = self.for_class(inspection["target"])
            is_sure = probability >= inspection["sure_threshold"]
            is_unsure = (predicted == inspection["target"]) & ~is_sure
            columns["decision"] = np.where(is_unsure, UNSURE, predicted).tolist()
        if self.distances is not None:
            columns["distance"] = self.distances.tolist()
        return columns

    def confusion(self) -> np.ndarray:
        """How many samples of class i were predicted as class j: (classes, classes)."""
        count = len(self.classes)
        pairs = self.targets * count + self.predicted
        return np.bincount(pairs, minlength=count * count).reshape(count, count)

    def count(self, true: int, called: int) -> int:
        """How many samples of one class were predicted as another."""
        return int(((self.targets == true) & (self.predicted == called)).sum())

    def per_class(self) -> dict[str, dict[str, float]]:
        """Precision, recall, F1 and support of each class; 0 where the divisor is 0."""
        count, targets, called = len(self.classes), self.targets, self.predicted
        parts = targets[targets == called], targets, called
        right, support, predicted = (np.bincount(part, minlength=count) for part in parts)
        precision, recall = right / np.maximum(predicted, 1), right / np.maximum(support, 1)
        f1 = 2 * right / np.maximum(support + predicted, 1)
        keys = ("precision", "recall", "f1", "support")
        rows = zip(*(column.tolist() for column in (precision, recall, f1, support)), strict=True)
        scores = (dict(zip(keys, row, strict=True)) for row in rows)
        return dict(zip(self.classes, scores, strict=True))

    def per_group(self, groups: Sequence[str]) -> dict[str, dict[str, int]]:
        """{"n", "wrong"} of each group, with an inspection also its `counts`; the worst first.

        Args:
            groups: of each sample
        """
        names, numbers = np.unique(np.asarray(groups, str), return_inverse=True)
        wrong, rows = self.predicted != self.targets, {}
        for number, name in enumerate(names.tolist()):
            own = numbers == number
            rows[name] = {"n": int(own.sum()), "wrong": int(wrong[own].sum())}
            if self._inspection is not None:
                target = class_number(self._inspection["target"], self.classes)
                called, is_target = self.predicted[own] == target, self.targets[own] == target
                rows[name] |= counts(called, is_target)
        return dict(sorted(rows.items(), key=lambda row: -row[1]["wrong"] / row[1]["n"]))

    def shown(self) -> tuple[list[int], list[int]]:
        """Positions of the mistakes and of the suspected labels that the page shows."""
        return self.mistakes[:SHOWN_MISTAKES], self.suspects()[:SHOWN_SUSPECTS]

    def unlike(self) -> list[int]:
        """Positions of the samples beyond the limit of distance, the farthest first."""
        order = np.argsort(-self.distances, kind="stable")
        return order[self.distances[order] > 1].tolist()

    def suspects(self) -> list[int]:
        """Positions of samples whose label is probably wrong, the most suspicious first.

        The label's class is less likely than by chance, and another class at least as likely as
        it is on average for its own samples: confident learning (Northcutt et al.,
        arXiv:1911.00068) without its counts.
        """
        targets, probabilities = self.targets, self.probabilities
        likeliest = probabilities.argmax(1)
        count = np.bincount(targets, minlength=probabilities.shape[1])
        labelled = np.take_along_axis(probabilities, targets[:, None], 1)[:, 0]
        sums = np.bincount(targets, weights=labelled, minlength=len(count))
        average = np.where(count == 0, np.inf, sums / np.maximum(count, 1))
        unlikely = (labelled < 1 / len(count)) & (likeliest != targets)
        positions = np.flatnonzero(unlikely & (probabilities.max(1) >= average[likeliest]))
        return positions[np.argsort(labelled[positions], kind="stable")].tolist()


def is_classification(target: Tensor, output: Tensor) -> bool:
    """Whether these are outputs (N, classes) and class numbers (N,)."""
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] < 2:
        return False
    if not isinstance(target, Tensor) or target.ndim != 1 or target.is_floating_point():
        return False
    return bool(0 <= target.min() <= target.max() < output.shape[1])


def is_image(shape: Sequence[int]) -> bool:
    """Whether `shape` is an image's: (1 or 3, H, W)."""
    return len(shape) == 3 and shape[0] in (1, 3)


def class_names(count: int, *names: list[str] | None) -> list[str]:
    """The first of `names` with one name for each of `count` classes, else their numbers."""
    fitting = (list(known) for known in names if known and len(known) == count)
    return next(fitting, [str(number) for number in range(count)])


def write_table(path: Path, columns: dict[str, list]) -> None:
    """Write columns as a CSV file: numbers are short, with all the digits that float32 has."""
    rows = zip(*columns.values(), strict=True)
    cells = ([f"{v:.7g}" if isinstance(v, float) else v for v in row] for row in rows)
    write_csv(path, [*columns], cells)
