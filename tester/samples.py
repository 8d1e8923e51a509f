"""What a task says of each sample, for tests of anything but classifiers."""

import math

import numpy as np
from torch import Tensor

from base import BaseTask
from base.base_task import Step
from utils.errors import UserError, explained

SHOWN = 24  # samples with images


class Samples:
    """A task's columns for all samples, and its images of the worst. `add` is evaluate()'s hook.

    Attributes:
        columns: name -> a value for each sample
        shown: positions of the 24 worst samples by the task's `worst`, the worst first; without
            that, of the first ones
        images: the task's images of these, if it gives any: position -> (3, H, W) of 0 to 1
    """

    def __init__(self, task: BaseTask):
        self.columns: dict[str, list] = {}
        self.images: dict[int, Tensor] = {}
        self._task, self._name = task, f"task: {type(task).__name__}"
        self._count, self._ranks = 0, []  # (how bad, position) of the samples that are shown

    @property
    def shown(self) -> list[int]:
        return [position for _, position in self._ranks]

    def add(self, step: Step) -> None:
        """Add one batch. Raises UserError if the columns do not have one value per sample."""
        first, self._count = self._count, self._count + step.count
        with explained(f"{self._name}.columns failed"):
            columns = {
                name: values.tolist() if isinstance(values, Tensor | np.ndarray) else list(values)
                for name, values in self._task.columns(step).items()
            }
        for name, values in columns.items():
            if len(values) != step.count:
                raise UserError(
                    f'{self._name}.columns gives {len(values)} values of "{name}" for '
                    f"{step.count} samples"
                )
            self.columns.setdefault(name, []).extend(values)
        ranks = zip(self._badness(columns, step.count), range(first, self._count), strict=True)
        self._ranks = sorted([*self._ranks, *ranks])[:SHOWN]
        if any(position >= first for position in self.shown):
            with explained(f"{self._name}.images failed"):
                images = self._task.images(step)
            if images is not None:
                new = [position for position in self.shown if position >= first]
                self.images |= {p: images[p - first].detach().cpu().clone() for p in new}
                self.images = {p: self.images[p] for p in self.shown if p in self.images}

    def _badness(self, columns: dict[str, list], count: int) -> list[float]:
        """The smallest for the worst sample; 0 for all if the task does not say which is worse."""
        if self._task.worst is None or not columns:
            return [0.0] * count
        direction, _, column = self._task.worst.partition(" ")
        if direction not in ("min", "max") or column not in columns:
            raise UserError(
                f'{self._name}.worst is "{self._task.worst}"; it should be "min" or "max" and one '
                f"of its columns {', '.join(columns)}"
            )
        sign = -1 if direction == "max" else 1
        return [math.inf if math.isnan(value) else sign * value for value in columns[column]]
