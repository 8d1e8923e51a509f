"""What test.py collects of a task's samples."""

import csv
import json
import math

import pytest
import torch

import test as script
from base import BaseTask
from base.base_task import Step
from tester.samples import Samples
from utils import checkpoint
from utils.errors import UserError


class Scored(BaseTask):
    """Its columns and images come from the data: (N, 1, 2, 2), whose first pixel is the score."""

    worst = "min score"

    def step(self, model, batch):
        """Not needed."""

    def columns(self, step):
        return {"score": step.data[:, 0, 0, 0], "name": [f"s{int(n)}" for n in step.target]}

    def images(self, step):
        return step.data.expand(-1, 3, -1, -1)


def collect(task, scores, size=7):
    samples = Samples(task)
    for start in range(0, len(scores), size):
        part = torch.tensor(scores[start : start + size])
        numbers = torch.arange(start, start + len(part))
        data = part[:, None, None, None].expand(-1, 1, 2, 2)
        samples.add(Step(torch.zeros(()), None, numbers, len(part), data))
    return samples


@pytest.mark.parametrize("worst", ["min score", "max score"])
def test_the_worst_samples_are_shown_first(worst):
    scores = torch.randn(100, generator=torch.Generator().manual_seed(0)).tolist()
    task = Scored()
    task.worst = worst
    samples = collect(task, scores)
    order = sorted(range(100), key=scores.__getitem__, reverse=worst.startswith("max"))
    assert samples.shown == order[:24]
    assert sorted(samples.images) == sorted(order[:24])
    assert all(samples.images[p][0, 0, 0].item() == pytest.approx(scores[p]) for p in order[:24])
    assert samples.columns["score"] == pytest.approx(scores)
    assert samples.columns["name"] == [f"s{number}" for number in range(100)]


def test_without_worst_the_first_are_shown_and_nan_comes_last():
    task = Scored()
    task.worst = None
    assert collect(task, [0.0] * 30).shown == list(range(24))
    task.worst = "min score"
    assert collect(task, [math.nan, 2.0, 1.0]).shown == [2, 1, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"worst": "min iou"}, 'worst is "min iou"; it should be .* columns score, name'),
        ({"columns": lambda step: {"a": [1]}}, 'columns gives 1 values of "a" for 7 samples'),
        ({"columns": lambda step: step.nothing}, "columns failed: .*nothing"),
        ({"images": lambda step: step.data + "a"}, "images failed"),
    ],
)
def test_what_does_not_fit_is_a_sentence(changes, message):
    task = Scored()
    vars(task).update(changes)
    with pytest.raises(UserError, match=message):
        collect(task, [1.0] * 20)


OWN = """
from trainer.tasks import SupervisedTask

class Chosen(SupervisedTask):
    def step(self, model, batch):
        step = super().step(model, batch)
        step.output = step.output.exp().max(1).values
        return step
    def columns(self, step):
        limit = self.decided and self.decided["limit"]
        return {"sure": step.output, "limit": [limit] * step.count}
    def decide(self, columns):
        print("decides", len(columns["sure"]))
        return {"limit": sum(columns["sure"]) / len(columns["sure"])}
    def tables(self, columns):
        return {"How sure": [["", "mean"], ["all", sum(columns["sure"]) / len(columns["sure"])]]}
"""


def test_decision_on_validation_samples_is_kept_in_the_checkpoint(digits, train, own_code, capsys):
    own_code("own", OWN)
    run = train(digits({"task": "own.Chosen", "metrics": []}), "--epochs", 1)
    for _ in range(2):
        assert script.main(["-r", str(run)]) == 0
    assert capsys.readouterr().out.count("decides 144") == 1
    limit = checkpoint.load(run / checkpoint.BEST)["decided"]["limit"]
    with open(run / "test" / "predictions.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 359
    assert {row["limit"] for row in rows} == {f"{limit:.7g}"}
    table = json.loads((run / "test" / "result.json").read_text())["tables"]["How sure"]
    mean = sum(float(row["sure"]) for row in rows) / 359
    assert table == [["", "mean"], ["all", pytest.approx(mean, rel=1e-5)]]
    assert limit != pytest.approx(mean, rel=1e-4)
    page = (run / "test" / "report.html").read_text()
    assert "How sure" in page
    assert script.main(["-r", str(run), "--split", "val"]) == 0
    table = json.loads((run / "test" / "result_val.json").read_text())["tables"]["How sure"]
    assert table[1][1] == pytest.approx(limit, rel=1e-6)
