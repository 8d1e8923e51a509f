"""The tasks that come with the template, each from training to report, against other libraries."""

import csv
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics as sklearn_metrics
from torch import nn

import test as test_script
from tests.conftest import assert_same, build, last_checkpoint
from trainer.regression import RegressionTask
from trainer.tasks import SupervisedTask
from utils import checkpoint
from utils.errors import UserError

REGRESSION = {
    "arch": {"type": "MLP", "args": {"in_features": 10, "hidden": [16]}},
    "data_loader": {
        "type": "DiabetesDataLoader",
        "args": {"batch_size": 50, "validation_split": 0.2},
    },
    "task": "RegressionTask",
    "optimizer": {"type": "Adam", "args": {"lr": 0.01}},
    "loss": "mse_loss",
    "metrics": ["MeanAbsoluteError", "R2Score"],
}


def config_of(digits, sections):
    """The digits' config with other sections, without its schedule."""
    config = digits({"lr_scheduler": None, **sections})
    if "data_dir" not in sections["data_loader"]["args"]:
        config["data_loader"]["args"].pop("data_dir", None)
    return config


def train_resume_test(config, train, resume, split="test"):
    """Train, compare with a run that was resumed, and test; the run's folder."""
    whole, half = train(config, "--epochs", 2), train(config, "--epochs", 1)
    resume(half, "--epochs", 2)
    for key in ("state_dict", "optimizer", "monitor_best"):
        assert_same(last_checkpoint(half)[key], last_checkpoint(whole)[key])
    assert test_script.main(["-r", str(whole), "--split", split]) == 0
    return whole


def results_of(run, split="test"):
    """result.json, the columns of predictions.csv and the page of a tested run."""
    suffix = "" if split == "test" else f"_{split}"
    result = json.loads((run / "test" / f"result{suffix}.json").read_text(encoding="utf-8"))
    with open(run / "test" / f"predictions{suffix}.csv", encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file)
    page = (run / "test" / f"report{suffix}.html").read_text(encoding="utf-8")
    return result, dict(zip(header, zip(*rows, strict=True), strict=True)), page


def outputs_of(run, config, split="test"):
    """The trained network's outputs and the targets, by a loop of the test's own."""
    trainer = build(config)
    trainer.model.load_state_dict(checkpoint.load(run / checkpoint.BEST)["state_dict"])
    loader = trainer.data_loader
    loader = trainer.valid_data_loader if split == "val" else loader.for_subset(split)
    with torch.no_grad():
        parts = [(trainer.model.eval()(data), target) for data, target in loader]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def test_regression_from_training_to_report(digits, train, resume):
    config = config_of(digits, REGRESSION)
    run = train_resume_test(config, train, resume)
    output, target = (part.double().numpy() for part in outputs_of(run, config))
    output = output[:, 0]
    result, columns, page = results_of(run)
    assert result["R2Score"] == pytest.approx(sklearn_metrics.r2_score(target, output), rel=1e-4)
    assert result["MeanAbsoluteError"] == pytest.approx(np.abs(target - output).mean(), rel=1e-4)
    assert result["loss"] == pytest.approx(np.square(target - output).mean(), rel=1e-4)
    values = {name: np.array(column, dtype=float) for name, column in columns.items()}
    assert np.allclose(values["true"], target)
    assert np.allclose(values["residual"], output - target, atol=1e-3)
    worst = np.abs(output - target).argsort()[::-1]
    assert page.index(f"<td>{worst[0]}</td>") < page.index(f"<td>{worst[1]}</td>")
    assert "predicted against true" in page


@pytest.mark.parametrize(("shape", "targets"), [((4,), (4, 1)), ((4, 1), (4,)), ((4, 3), (4, 3))])
def test_regression_compares_number_by_number(shape, targets):
    data, target = torch.randn(shape), torch.arange(np.prod(targets)).view(targets)
    step = RegressionTask(F.mse_loss).step(nn.Identity(), (data, target))
    expected = np.square(data.numpy().ravel() - target.numpy().ravel()).mean()
    assert step.loss.item() == pytest.approx(expected)
    assert step.output.shape == step.target.shape
    assert RegressionTask().columns(step)["error"].shape == (4,)


def test_regression_of_two_shapes_is_a_sentence(digits, train, capsys):
    train(config_of(digits, REGRESSION | {"arch.args.out_features": 2}), "--check", code=2)
    assert "compares number by number" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [tuple, list, dict])
def test_supervised_task_takes_several_inputs(kind):
    class Weighted(nn.Module):
        def forward(self, left, right):
            return left + 2 * right

    left, right, target = torch.randn(5, 3), torch.randn(5, 3), torch.arange(5) % 3
    inputs = {"right": right, "left": left} if kind is dict else kind([left, right])
    step = SupervisedTask(F.cross_entropy).step(Weighted(), (inputs, target))
    assert step.loss == F.cross_entropy(left + 2 * right, target)
    with pytest.raises(UserError, match="pairs"):
        SupervisedTask(F.cross_entropy).step(Weighted(), (left, right, target))
