"""Per-class numbers and the cost of an inspection in each epoch, against scikit-learn."""

import csv

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, recall_score

from base.base_task import Step
from tests.conftest import last_checkpoint
from trainer.answers import Answers, class_table
from utils import checkpoint, run_folder

METRICS = ["accuracy", "recall", "balanced_accuracy", "macro_f1"]


def validation_outputs(run):
    from model.model import LeNet
    from parse_config import ConfigParser

    state = last_checkpoint(run)
    model = LeNet()
    model.load_state_dict(state["state_dict"])
    loader = ConfigParser(state["config"]).init_obj("data_loader").split_validation()
    with torch.no_grad():
        parts = [(model.eval()(data).exp(), target) for data, target in loader]
    return [torch.cat(column).numpy() for column in zip(*parts, strict=True)]


def test_epochs_log_classes_and_costs_and_any_of_them_can_be_monitored(digits, train, capsys):
    inspection = {"target": "8", "max_escape": 0.2}
    changes = {"metrics": METRICS, "inspection": inspection, "trainer.monitor": "min val_overkill"}
    run = train(digits(changes))
    probability, target = validation_outputs(run)
    predicted = probability.argmax(1)
    with open(run_folder.log_dir_for(run) / "metrics.csv", newline="") as file:
        *_, row = csv.DictReader(file)
    recalls = recall_score(target, predicted, average=None)
    assert [float(row[f"val_recall_{n}"]) for n in range(10)] == pytest.approx(recalls.tolist())
    balanced = balanced_accuracy_score(target, predicted)
    assert float(row["val_balanced_accuracy"]) == pytest.approx(balanced)
    assert float(row["val_macro_f1"]) == pytest.approx(f1_score(target, predicted, average="macro"))
    of_target = np.sort(probability[target == 8, 8])
    allowed = int(0.2 * len(of_target))
    assert float(row["val_escape"]) == pytest.approx(allowed / len(of_target))
    overkill = (probability[target != 8, 8] >= of_target[allowed] - 1e-7).mean()
    assert float(row["val_overkill"]) == pytest.approx(overkill)
    assert checkpoint.load(run / checkpoint.BEST)["monitor_best"] <= overkill + 1e-7
    printed = capsys.readouterr().out
    assert printed.index("validation of epoch") < printed.index("best val_overkill")


def test_before_the_training_it_is_said_what_the_validation_data_can_show(digits, train, capsys):
    inspection = {"target": "8", "max_escape_bound": 0.01}
    run = train(digits({"inspection": inspection, "trainer.epochs": 1}))
    count = int((validation_outputs(run)[1] == 8).sum())
    bound = binomtest(0, count, alternative="less").proportion_ci(0.95).high
    said = f"none of the {count} 8 in the validation data is missed, up to {bound:.2%} may be"
    printed = " ".join(capsys.readouterr().out.split())
    assert said in printed
    assert f"{count} 8 cannot show that at most 1.00% are missed; that takes 299" in printed
    assert printed.index(said) < printed.index("epoch 1/1")


def test_table_counts_and_of_many_classes_shows_the_worst():
    generator = np.random.default_rng(0)
    target, predicted = generator.integers(0, 30, (2, 4000))
    predicted[target == 7] = 7
    answers = Answers(None)
    outputs = torch.nn.functional.one_hot(torch.from_numpy(predicted), 30).float()
    answers.add(Step(None, outputs, torch.from_numpy(target), len(target)))
    counts, expected = answers.counts(), confusion_matrix(target, predicted)
    assert counts.tolist() == [part.tolist() for part in (
        expected.diagonal(), expected.sum(1), expected.sum(0))]  # fmt: skip
    header, *rows = class_table(counts, [f"c{n}" for n in range(30)])
    assert header[0] == "class"
    assert len(rows) == 20
    assert "c7" not in [row[0] for row in rows]
    _, *rows = class_table(torch.tensor([[3, 0], [4, 0], [3, 1]]), ["NG", "OK"])
    assert rows == [["NG", "3 of 4 75.0%", "3 of 3 100.0%"], ["OK", "0 of 0", "0 of 1 0.0%"]]


def test_no_costs_without_samples_of_the_target(digits, train, capsys):
    answers = Answers(None, 1)
    answers.add(Step(None, torch.eye(2), torch.tensor([0, 0]), 2))
    assert answers.costs({"target": "NG"}) == {}
