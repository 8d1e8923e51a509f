"""Signs that a classifier's numbers do not mean what they seem to."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from base import BaseTask
from base.samples import Batch
from model.freezing import set_training_mode
from trainer.answers import is_classification
from trainer.rehearsal import unchanged
from utils.engine import distributed
from utils.engine.engine import Engine, Running

SURE, LIKELY = 3, 2  # standard errors
CONTRADICTION = 0.2  # of the accuracy; a difference that dropout or noise do not make


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
