from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from base import BaseDataLoader
from base.base_task import Model, Step
from base.samples import Batch
from trainer.agreement import check_agreement
from trainer.build import build_trained_network, trained_state
from trainer.tasks import SupervisedTask
from utils.config.config import ConfigParser
from utils.config.hints import PositiveFloat, Share
from utils.engine.engine import Engine, Running
from utils.errors import UserError

ORIGINAL = "original"


class DistillationTask(SupervisedTask):
    """A classifier also learns from a teacher's probabilities (Hinton et al., arXiv:1503.02531).

    Only in training: evaluation needs no teacher, and its loss is that of the targets alone.

    Args:
        teacher: a checkpoint or a run's folder; in a pruning run also "original", the network
            before the first cut
        weight: of the teacher in the loss; the targets have the rest
        temperature: by which logits are divided first, so that small probabilities count more
    """

    not_kept = (*SupervisedTask.not_kept, "config", "engine", "data_loader", "network")

    def __init__(
        self,
        config: ConfigParser,
        engine: Engine,
        data_loader: BaseDataLoader,
        teacher: str,
        weight: Share = 0.5,
        temperature: PositiveFloat = 4.0,
        criterion: Callable | None = None,
    ):
        super().__init__(criterion)
        self.config, self.engine, self.data_loader = config, engine, data_loader
        self.teacher, self.weight, self.temperature = teacher, weight, temperature
        self.network: nn.Module | None = None  # the teacher's, once it is needed

    def step(self, model: Model, batch: Batch) -> Step:
        step = super().step(model, batch)
        if not torch.is_grad_enabled() or not self.find_teacher():
            return step
        with torch.no_grad():
            wanted = Running(self.engine, self.network)(step.data)
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
        return step

    def find_teacher(self) -> bool:
        """Load the teacher if it is not there yet; False before a pruning run's first cut.

        Raises UserError if it was made for other classes.
        """
        if self.network is not None:
            return True
        place = Path(self.teacher)
        if self.teacher == ORIGINAL and not place.exists():
            if self.config.get("pruner") is None:
                raise UserError('task.args.teacher: there is an "original" in pruning runs only')
            place = self.config.save_dir / "prune" / "step0.pth"
            if not place.exists():
                return False
        config = self.config.from_checkpoint(place)
        for line in check_agreement(str(config.resume), trained_state(config), self.data_loader):
            config.get_logger("task").warning(f"the teacher: {line}")
        self.network = build_trained_network(config).to(self.engine.device)
        return True
