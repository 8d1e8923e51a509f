"""What a classifier answers in a validation, what follows from it, and signs that its numbers do
not mean what they seem to.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from base import BaseTask
from base.base_task import Step
from base.samples import Batch
from model.freezing import set_training_mode
from trainer.decisions import choose_threshold, escapes_allowed, rates
from trainer.rehearsal import unchanged
from utils.engine import distributed
from utils.engine.engine import Engine, Running

MOST_ROWS = 20  # of a table on the screen
SURE, LIKELY = 3, 2  # standard errors
CONTRADICTION = 0.2  # of the accuracy; a difference that dropout or noise do not make


class Answers:
    """What a classifier answered in a validation: `add` is evaluate()'s hook. The rest is called on
    all processes, and is about the samples of all.

    Args:
        task: may say that its network is not a classifier
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

    def counts(self) -> Tensor:
        """Of each class: samples that were recognised, all of it, all that were taken for it;
        (3, classes), on the CPU.
        """
        target, predicted, _ = self._gathered().long()
        count = int(torch.cat([target, predicted]).max()) + 1 if len(target) else 0
        parts = target[target == predicted], target, predicted
        return torch.stack([torch.bincount(part, minlength=count) for part in parts])

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


def class_table(counts: Tensor, classes: list[str]) -> list[list[str]]:
    """Each class's recall and precision with their counts, as rows; of many classes the worst."""
    right, support, called = counts
    order = range(len(right))
    if len(right) > MOST_ROWS:
        order = (right / support.clamp(min=1)).argsort()[:MOST_ROWS].tolist()
    rows = [["class", "recognised", "of those called so"]]
    for n in order:
        shares = [(int(right[n]), int(of[n])) for of in (support, called)]
        texts = [f"{k} of {of}" + (f" {k / of:.1%}" if of else "") for k, of in shares]
        rows.append([classes[n], *texts])
    return rows


def is_classification(step: Step, task: BaseTask | None) -> bool:
    """Whether these are outputs (N, classes) and class numbers (N,), as far as the task knows."""
    output, target, classes = step.output, step.target, task and task.classes
    if not (isinstance(output, Tensor) and isinstance(target, Tensor)):
        return False
    if task is not None and not task.classifies:
        return False
    fits = classes is None or output.shape[1:] == (len(classes),)
    return fits and output.ndim == 2 and target.ndim == 1 and not target.is_floating_point()


def find_doubts(counts: Tensor, classes: list[str] | None) -> list[str]:
    """What is suspicious about the answers on validation samples, in words."""
    right, support, answers = counts
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
    recall = right[present] / support[present]
    balanced, chance = float(recall.mean()), 1 / len(present)
    # of a network that guesses
    error = float((chance * (1 - chance) / support[present]).sum().sqrt()) / len(present)
    doubt = None
    if balanced < chance - SURE * error:
        doubt = "fewer than by guessing: are the labels of training and validation the same?"
    elif balanced - chance < LIKELY * error:
        doubt = "which guessing may do too: more samples would tell"
    figure = f"{balanced:.1%} of each class of the {total} validation samples are recognised"
    return [f"{figure}, {doubt}"] if doubt else []


def contradiction(
    network: nn.Module, batches: Iterable[Batch], task: BaseTask, engine: Engine
) -> list[str]:
    """A warning if the network answers in evaluation mode otherwise than in training mode.

    Compares its accuracy in training mode with that in evaluation mode on the same training
    batches. Overfitting makes no difference, but wrong statistics of batch norms do. On all
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
