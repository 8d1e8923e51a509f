"""Signs that a classifier's numbers do not mean what they seem to."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from base import BaseTask
from base.base_task import Step
from base.samples import Batch
from model.freezing import set_training_mode
from trainer.rehearsal import unchanged
from utils.engine import distributed
from utils.engine.engine import Engine, Running

SURE, LIKELY = 3, 2  # standard errors
CONTRADICTION = 0.2  # of the accuracy; a difference that dropout or noise do not make


class Answers:
    """What a classifier answered in a validation: `add` is evaluate()'s hook."""

    def __init__(self, task: BaseTask | None):
        self._task = task
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def add(self, step: Step) -> None:
        """Keep a batch's labels (N,) and likeliest classes (N,); nothing of other tasks."""
        if is_classification(step, self._task):
            self._pairs.append((step.target, step.output.argmax(1)))

    def confusion(self) -> Tensor:
        """How many samples of class i were taken for class j, (classes, classes), on the CPU.

        On all processes, for the samples of all.
        """
        pairs = [torch.stack(pair).cpu() for pair in self._pairs]
        gathered = distributed.all_gather(torch.cat(pairs, 1) if pairs else torch.empty(2, 0))
        pairs = torch.cat(gathered, 1).long()
        target, predicted = pairs[:, pairs[0] >= 0]  # -100 is not a label
        count = int(pairs.max()) + 1 if len(target) else 0
        return torch.bincount(target * count + predicted, minlength=count**2).view(count, count)


def find_doubts(confusion: Tensor, classes: list[str] | None) -> list[str]:
    """What is suspicious about answers (classes, classes) on validation samples, in words."""
    support, answers = confusion.sum(1), confusion.sum(0)
    total, present = int(support.sum()), support.nonzero().flatten()
    if total == 0:
        return []
    name = classes.__getitem__ if classes else str
    if len(present) == 1:
        only = name(int(present[0]))
        return [f"all {total} validation samples are {only}: nothing is known of other classes"]
    if int((answers > 0).sum()) == 1:
        answer = int(answers.argmax())
        commonest = ", the commonest class" if support[answer] == support.max() else ""
        return [
            f"the network calls all {total} validation samples {name(answer)}{commonest}: it does "
            "not tell the classes apart"
        ]
    recall = confusion.diagonal()[present] / support[present]
    balanced, chance = float(recall.mean()), 1 / len(present)
    # of a network that guesses
    error = float((chance * (1 - chance) / support[present]).sum().sqrt()) / len(present)
    if balanced < chance - SURE * error:
        return [
            f"{balanced:.1%} of each class of the {total} validation samples are recognised, fewer "
            "than by guessing: are the labels of training and validation the same?"
        ]
    if balanced - chance < LIKELY * error:
        return [
            f"{balanced:.1%} of each class of the {total} validation samples are recognised, which "
            "guessing may do too: more samples would tell"
        ]
    return []


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


def contradiction(
    network: nn.Module, batches: Iterable[Batch], task: BaseTask, engine: Engine
) -> list[str]:
    """Whether the network answers otherwise than it learned, in words.

    Compares its accuracy in training mode with that in evaluation mode on the same training
    batches. No over-fitting makes a difference: unfitting statistics of batch norms do. On all
    processes; the network stays as it is.
    """
    right = torch.zeros(3, dtype=torch.float64)  # in training mode, in evaluation mode, of
    running = Running(engine, network)
    with engine.seeded("doubts"), unchanged([network]), torch.no_grad():
        for batch in batches:
            for place, evaluation in enumerate((False, True)):
                network.eval() if evaluation else set_training_mode(network)
                step = task.step(running, batch)
                if not is_classification(step, task):
                    return []
                right[place] += (step.output.argmax(1) == step.target).sum().cpu()
            right[2] += step.count
    learned, answered, count = distributed.all_reduce_sum(right).tolist()
    if learned - answered <= CONTRADICTION * count:
        return []
    return [
        f"{learned / count:.1%} of {count:.0f} training samples are recognised in training mode, "
        f"{answered / count:.1%} of the same in evaluation mode: the running statistics of batch "
        "norms do not fit; train longer, or with larger batches"
    ]
