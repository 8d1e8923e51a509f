import functools

import numpy as np
import torch
from torch import Tensor

KEPT = 200  # pictures of mistakes, the most confident ones


class Predictions:
    """What a classifier said of each sample; `add` is evaluate()'s hook. To be read when all is added.

    `names` are lists of the classes' names, of which the first that is as long as the outputs are wide is taken.

    Attributes:
        classes: the classes' names
        targets: class numbers (N,)
        probabilities: (N, classes)
        pictures: position -> what the network saw (C, H, W), of the most confident mistakes, the most confident first
        is_classification: False once an output was not (n, classes), or a target no class number: nothing is kept then
    """

    def __init__(self, *names: list[str] | None):
        self._names = names
        self._targets: list[Tensor] = []
        self._probabilities: list[Tensor] = []
        self._wrong: list[tuple[float, int, Tensor]] = []
        self._count = 0
        self.is_classification = True

    def add(self, data: Tensor, target: Tensor, output: Tensor) -> None:
        """One batch."""
        self.is_classification = self.is_classification and is_classification(target, output)
        if not self.is_classification:
            return
        # of log-probabilities softmax makes the same probabilities
        probability, target = output.detach().float().softmax(1).cpu(), target.cpu().long()
        confidence, predicted = probability.max(1)
        wrong = (predicted != target).nonzero().flatten().tolist()
        pictures = data.detach().cpu() if wrong else data
        self._wrong += [(-confidence[i].item(), self._count + i, pictures[i].clone()) for i in wrong]
        self._wrong = sorted(self._wrong, key=lambda entry: entry[:2])[:KEPT]
        self._targets.append(target)
        self._probabilities.append(probability)
        self._count += len(target)

    @functools.cached_property
    def targets(self) -> np.ndarray:
        return torch.cat(self._targets).numpy()

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        return torch.cat(self._probabilities).numpy()

    @functools.cached_property
    def pictures(self) -> dict[int, Tensor]:
        return {position: picture for _, position, picture in self._wrong}

    @functools.cached_property
    def classes(self) -> list[str]:
        count = self._probabilities[0].shape[1]
        return class_names(count, *self._names)

    def confusion(self) -> np.ndarray:
        """How many samples of class i were taken for class j: (classes, classes)."""
        count = len(self.classes)
        pairs = self.targets * count + self.probabilities.argmax(1)
        return np.bincount(pairs, minlength=count * count).reshape(count, count)

    def per_class(self) -> dict[str, dict[str, float]]:
        """Precision, recall, F1 and support of each class; 0 where there is nothing to divide by."""
        confusion = self.confusion()
        right, given, said = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        precision, recall, f1 = (
            right * factor / np.maximum(of, 1) for factor, of in ((1, said), (1, given), (2, said + given))
        )
        return {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for name, p, r, f, n in zip(self.classes, precision, recall, f1, given, strict=True)
        }

    def suspects(self) -> list[int]:
        """Positions of samples whose label is probably wrong, the most suspicious first.

        The given class is less likely than by chance, and another at least as likely as it is on average for the
        samples that carry it: confident learning (Northcutt et al., arXiv:1911.00068) with the counts left out.
        """
        targets, probabilities = self.targets, self.probabilities
        count = np.bincount(targets, minlength=probabilities.shape[1])
        own = np.take_along_axis(probabilities, targets[:, None], 1)[:, 0]
        predicted, largest = probabilities.argmax(1), probabilities.max(1)
        average = np.bincount(targets, weights=own, minlength=len(count)) / np.maximum(count, 1)
        average[count == 0] = np.inf
        suspicious = (own < 1 / len(count)) & (predicted != targets) & (largest >= average[predicted])
        positions = np.flatnonzero(suspicious)
        return positions[np.argsort(own[positions], kind="stable")].tolist()


def is_classification(target: Tensor, output: Tensor) -> bool:
    """Whether these are outputs (n, classes) and class numbers (n,)."""
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] < 2:
        return False
    if not isinstance(target, Tensor) or target.ndim != 1 or target.is_floating_point():
        return False
    return bool(0 <= target.min() <= target.max() < output.shape[1])


def class_names(count: int, *names: list[str] | None) -> list[str]:
    """The first of `names` that has one for each of `count` classes, else their numbers."""
    return next((list(given) for given in names if given and len(given) == count), [str(n) for n in range(count)])
