"""What a batch means is said once: files as a user writes them, trained, resumed and tested."""

import csv
import json

import pytest
import torch
import torch.nn.functional as F

import test as test_script
from tests.conftest import SMALL_NETWORK, assert_same, build, last_checkpoint
from utils import checkpoint, run_folder

TASKS = """
from dataclasses import dataclass
import torch
import torch.nn.functional as F
from torch import nn
from base import BaseDataLoader, BaseTask
from base.base_task import Step
from data_loader.data_loaders import DigitsDataLoader
from trainer.tasks import SupervisedTask

class SeesTheInput(SupervisedTask):
    def step(self, model, batch):
        step = super().step(model, batch)
        step.loss = step.loss + 0.1 * batch[0].mean().abs()
        step.log = {"brightness": batch[0].mean()}
        return step

class Plus100(SupervisedTask):
    def step(self, model, batch):
        step = super().step(model, batch)
        step.loss = step.loss + 100
        return step

class TwoInputs(BaseTask):
    def step(self, model, batch):
        output = model(batch["left"], batch["right"])
        target = batch["target"]
        return Step(self.criterion(output, target), output, target, len(target), batch["left"])

class Halves(DigitsDataLoader):
    def build_dataset(self, subset, augment):
        whole = super().build_dataset(subset, augment)
        return [{"left": x[..., :14], "right": x[..., 14:], "target": y} for x, y in
                (whole[number] for number in range(400))]

class TwoBranches(nn.Module):
    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.branch, self.head = nn.Linear(28 * 14, 16), nn.Linear(32, num_classes)
    def forward(self, left, right):
        halves = [self.branch(half.flatten(1)).relu() for half in (left, right)]
        return self.head(torch.cat(halves, 1))

@dataclass
class Answer:
    logits: torch.Tensor
    embedding: torch.Tensor

class Embedding(nn.Module):
    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.embed, self.head = nn.Linear(784, 16), nn.Linear(16, num_classes)
    def forward(self, x):
        embedding = self.embed(x.flatten(1)).relu()
        return Answer(self.head(embedding), embedding)

class SmallEmbedding(BaseTask):
    def __init__(self, criterion=None, weight: float = 0.01):
        super().__init__(criterion)
        self.weight = weight
    def step(self, model, batch):
        answer, target = model(batch[0]), batch[1]
        loss = self.criterion(answer.logits, target) + self.weight * answer.embedding.abs().mean()
        return Step(loss, answer.logits, target, len(target), batch[0])

class GradientPenalty(SupervisedTask):
    def step(self, model, batch):
        data = batch[0].clone().requires_grad_()
        with torch.enable_grad():
            step = super().step(model, (data, batch[1]))
            [gradient] = torch.autograd.grad(step.output.sum(), data, create_graph=True)
        step.loss = step.loss + 0.01 * gradient.square().sum((1, 2, 3)).mean()
        return step
"""
CASES = {
    "sees the input": {"task": "own_tasks.SeesTheInput"},
    "two inputs": {
        "task": "own_tasks.TwoInputs",
        "data_loader.type": "own_tasks.Halves",
        "arch": "own_tasks.TwoBranches",
    },
    "dataclass": {
        "task": {"type": "own_tasks.SmallEmbedding", "args": {"weight": 0.02}},
        "arch": "own_tasks.Embedding",
    },
    "gradient penalty": {"task": "own_tasks.GradientPenalty", "arch": "own_tasks.TwoBranches"},
}
CASES["gradient penalty"]["arch"] = "net.small"


@pytest.fixture(autouse=True)
def own_tasks(own_code):
    own_code("own_tasks", TASKS)
    own_code("net", SMALL_NETWORK)


def rows(run):
    with open(run_folder.log_dir_for(run) / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", CASES)
def test_own_task_is_trained_resumed_and_tested(digits, train, resume, name):
    config = digits({**CASES[name], "metrics": ["accuracy"], "lr_scheduler": None})
    whole = train(config, "--epochs", 3)
    half = train(config, "--epochs", 2)
    resume(half, "--epochs", 3)
    for key in ("state_dict", "optimizer", "monitor_best"):
        assert_same(last_checkpoint(half)[key], last_checkpoint(whole)[key])
    assert test_script.main(["-r", str(whole), "--split", "val"]) == 0
    result = json.loads((whole / "test" / "result_val.json").read_text())
    best = min(rows(whole), key=lambda row: float(row["val_loss"]))
    assert result["loss"] == pytest.approx(float(best["val_loss"]), rel=1e-4)
    assert result["accuracy"] == pytest.approx(float(best["val_accuracy"]))
    if name == "sees the input":
        assert result["brightness"] == pytest.approx(float(best["val_brightness"]), rel=1e-4)


def test_one_line_changed_in_the_task_shows_everywhere(digits, train):
    config = digits(
        {"metrics": [], "lr_scheduler": None, "optimizer": {"type": "SGD", "args": {"lr": 0.01}}}
    )
    plain, plus = train(config), train(config | {"task": "own_tasks.Plus100"})
    for one, two in zip(rows(plain), rows(plus), strict=True):
        for key in ("loss", "val_loss"):
            assert float(two[key]) == pytest.approx(float(one[key]) + 100, abs=1e-3)
    results = []
    for run in (plain, plus):
        assert test_script.main(["-r", str(run)]) == 0
        results.append(json.loads((run / "test" / "result.json").read_text())["loss"])
    assert results[1] == pytest.approx(results[0] + 100, abs=1e-3)
    best = [checkpoint.load(run / "model_best.pth")["monitor_best"] for run in (plain, plus)]
    assert best[1] == pytest.approx(best[0] + 100, abs=1e-3)


def test_trainer_that_defines_loss_uses_it_in_validation_too(digits, own_code):
    own_code(
        "own_loss",
        "from trainer.trainer import Trainer\n"
        "class Doubled(Trainer):\n"
        "    def loss(self, output, target):\n"
        "        return 2 * self.criterion(output, target)\n",
    )
    trainer, plain = (
        build(digits({"trainer.type": name})) for name in ("own_loss.Doubled", "Trainer")
    )
    assert trainer._valid_epoch(1)["loss"] == pytest.approx(2 * plain._valid_epoch(1)["loss"])


def test_auxiliary_heads_count_in_training_only(digits, own_code):
    own_code(
        "heads",
        "from torch import nn\n"
        "class Two(nn.Module):\n"
        "    def __init__(self, num_classes: int = 10):\n"
        "        super().__init__()\n"
        "        self.aux, self.main = nn.Linear(784, num_classes), nn.Linear(784, num_classes)\n"
        "    def forward(self, x):\n"
        "        x = x.flatten(1)\n"
        "        return (self.main(x), self.aux(x)) if self.training else self.main(x)\n",
    )
    trainer = build(digits({"arch": "heads.Two"}))
    data, target = next(iter(trainer.data_loader))
    x = data.flatten(1)
    main, extra = (
        F.cross_entropy(part(x), target) for part in (trainer.model.main, trainer.model.aux)
    )
    step = trainer.task.step(trainer.model.train(), (data, target))
    torch.testing.assert_close(step.loss, main + 0.3 * extra)
    step = trainer.task.step(trainer.model.eval(), (data, target))
    torch.testing.assert_close(step.loss, main)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "own_tasks.Embedding"}, "takes one tensor from the network, not Answer"),
        ({"data_loader.type": "own_tasks.Halves"}, "the task needs pairs (input, target)"),
        ({"task": "own_tasks.TwoInputs"}, "TwoInputs"),
        ({"task": {"type": "own_tasks.SmallEmbedding", "args": {"wieght": 1}}},
         'did you mean "weight"?'),
        ({"task": "own_tasks.Step"}, "is not a BaseTask"),
    ],
)  # fmt: skip
def test_a_task_that_does_not_fit_is_a_sentence(digits, train, capsys, changes, message):
    for flags in ([], ["--check"]):
        train(digits(changes), *flags, code=2)
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
