from collections.abc import Callable

import torch
import torch.nn.functional as F

from base.base_task import Model, Step
from base.samples import Batch
from trainer.tasks import SupervisedTask
from utils.config.hints import PositiveFloat, Share
from utils.errors import UserError


class DistillationTask(SupervisedTask):
    """A classifier also learns from a teacher's probabilities (Hinton et al., arXiv:1503.02531).

    Only in training: evaluation needs no teacher, and its loss is that of the targets alone.

    Args:
        teacher: a checkpoint or a run's folder; in a run that changes its network also "original",
            the network before that
        weight: of the teacher in the loss; the targets have the rest
        temperature: by which logits are divided first, so that small probabilities count more
    """

    not_kept = (*SupervisedTask.not_kept, "network")

    def __init__(
        self,
        load_network: Callable[[str], Model],
        teacher: str,
        weight: Share = 0.5,
        temperature: PositiveFloat = 4.0,
        criterion: Callable | None = None,
    ):
        super().__init__(criterion)
        self.load_network = load_network
        self.teacher, self.weight, self.temperature = teacher, weight, temperature
        self.network: Model | None = None  # the teacher's, once it is needed

    def step(self, model: Model, batch: Batch) -> Step:
        step = super().step(model, batch)
        if torch.is_grad_enabled():
            self.network = self.network or self.find_teacher()
            if self.network is not None:
                self.learn_from_teacher(step)
        return step

    def find_teacher(self) -> Model | None:
        """The teacher's network; None for the original one before there is another.

        Raises UserError if there is none, or if it was made for other classes.
        """
        if self.teacher != "original":
            return self.load_network(self.teacher)
        if self.original is None:
            raise UserError('task.args.teacher: this run does not change its "original" network')
        return self.load_network(str(self.original)) if self.original.exists() else None

    def learn_from_teacher(self, step: Step) -> None:
        """Add the distance between the teacher's probabilities and the network's to the loss.

        Raises UserError if the teacher gives another number of outputs.
        """
        with torch.no_grad():
            wanted = self.network(step.data)
        if wanted.shape != step.output.shape:
            raise UserError(
                f"task.args.teacher: {self.teacher} gives {wanted.shape[1]} outputs, the network "
                f"{step.output.shape[1]}"
            )
        answer, wanted = ((x / self.temperature).log_softmax(1) for x in (step.output, wanted))
        distance = F.kl_div(answer, wanted, reduction="batchmean", log_target=True)
        distance = distance * self.temperature**2  # so that the gradients stay as large
        step.loss = (1 - self.weight) * step.loss + self.weight * distance
        step.log["distillation"] = distance
