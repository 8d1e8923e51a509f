"""What a classifier answers in a validation, and what follows from it."""

import numpy as np
import torch
from torch import Tensor

from base import BaseTask
from base.base_task import Step
from trainer.decisions import choose_threshold, escapes_allowed, rates
from utils.engine import distributed

MOST_ROWS = 20  # of a table on the screen


class Answers:
    """What a classifier answered in a validation: `add` is evaluate()'s hook. The rest is called on
    all processes, and is about the samples of all.

    Args:
        task: its network is no classifier if it says so
        target: number of the class whose probability is kept, if any
    """

    def __init__(self, task: BaseTask | None, target: int | None = None):
        self._task, self._target = task, target
        self._kept: list[Tensor] = []  # labels, likeliest classes, probabilities: (3, N)

    def add(self, step: Step) -> None:
        """Keep a batch's answers; nothing of other tasks."""
        if is_classification(step, self._task):
            likeliest = step.output.argmax(1)
            probability = torch.zeros_like(likeliest)
            if self._target is not None:
                probability = step.output.detach().float().softmax(1)[:, self._target]
            kept = step.target, likeliest, probability
            self._kept.append(torch.stack([part.double() for part in kept]))

    def confusion(self) -> Tensor:
        """How many samples of class i were taken for class j, (classes, classes), on the CPU."""
        target, predicted, _ = self._gathered()
        count = int(torch.cat([target, predicted]).max()) + 1 if len(target) else 0
        pairs = (target * count + predicted).long()
        return torch.bincount(pairs, minlength=count**2).view(count, count)

    def costs(self, settings: dict) -> dict[str, float]:
        """{"escape", "overkill"} at the threshold that a test would choose on these samples, by the
        section "inspection"; nothing if none is of the target class.
        """
        target, _, probability = self._gathered().numpy()
        is_target, probability = target == self._target, probability.astype(np.float32)
        if not is_target.any():
            return {}
        allowed = max(0, escapes_allowed(int(is_target.sum()), settings))
        called = probability >= choose_threshold(probability, is_target, allowed)
        costs = rates(called, is_target)
        return {name: costs[name] for name in ("escape", "overkill") if costs[name] is not None}

    def _gathered(self) -> Tensor:
        own = torch.cat(self._kept, 1).cpu() if self._kept else torch.empty(3, 0).double()
        answers = torch.cat(distributed.all_gather(own), 1)
        return answers[:, answers[0] >= 0]  # -100 is not a label


def class_table(confusion: Tensor, classes: list[str]) -> list[list[str]]:
    """Each class's recall and precision with their counts, as rows; of many classes the worst."""
    right, support, called = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    order = range(len(confusion))
    if len(confusion) > MOST_ROWS:
        order = (right / support.clamp(min=1)).argsort()[:MOST_ROWS].tolist()
    rows = [
        [classes[n], *(_share(int(right[n]), int(of[n])) for of in (support, called))]
        for n in order
    ]
    return [["class", "recognised", "of those called so"], *rows]


def _share(count: int, of: int) -> str:
    return f"{count} of {of}" + (f" {count / of:.1%}" if of else "")


def is_classification(step: Step, task: BaseTask | None) -> bool:
    """Whether these are outputs (N, classes) and class numbers (N,), as far as the task knows."""
    classes = task and task.classes
    if task is not None and not task.classifies:
        return False
    output, target = step.output, step.target
    if not (isinstance(output, Tensor) and isinstance(target, Tensor)):
        return False
    if classes is not None and output.shape[1:] != (len(classes),):
        return False
    return output.ndim == 2 and target.ndim == 1 and not target.is_floating_point()
