"""Warnings about a run whose numbers mislead, and none about a healthy one."""

import pytest
import torch
from torch import nn

from base.base_task import Step
from tests.conftest import SMALL_NETWORK, build, save_images
from trainer.answers import Answers, contradiction, find_doubts
from trainer.tasks import SupervisedTask
from utils.engine.engine import Engine


def doubts(target, predicted, classes=("NG", "OK")):
    answers = Answers(None)
    outputs = torch.nn.functional.one_hot(torch.tensor(predicted, dtype=torch.long), 3).float()
    for part in range(0, len(target), 4):  # in batches
        labels = torch.tensor(target[part : part + 4])
        answers.add(Step(None, outputs[part : part + 4], labels, len(labels)))
    return find_doubts(answers.counts(), list(classes))


@pytest.mark.parametrize(
    ("target", "predicted", "message"),
    [
        ([0] * 3 + [1] * 9, [1] * 12, "calls all 12 validation samples OK, the commonest class"),
        ([0] * 3 + [1] * 9, [0] * 12, "calls all 12 validation samples NG: it does not tell"),
        ([1] * 7, [1, 0] * 3 + [1], "all 7 validation samples are OK"),
        ([0] * 20 + [1] * 20, [1] * 18 + [0] * 20 + [1] * 2, "fewer than by guessing"),
        ([0] * 5 + [1] * 6, [0, 0, 1, 1, 0] + [1] * 4 + [0] * 2, "63.3% of each class of the 11"),
        ([0] * 2 + [1] * 2, [1, 0, 0, 1], "which guessing may do too"),
    ],
)
def test_what_misleads_is_said(target, predicted, message):
    assert [message in line for line in doubts(target, predicted)] == [True]


@pytest.mark.parametrize(
    ("target", "predicted"),
    [
        ([0] * 10 + [1] * 10, [0] * 10 + [1] * 10),
        ([0] * 10 + [1] * 10, [0] * 6 + [1] * 14),
        ([0] * 2 + [1] * 2, [0, 0, 1, 1]),
        ([], []),
        ([-100] * 9 + [0] * 4 + [1] * 4, [0] * 13 + [1] * 4),
    ],
)
def test_what_is_better_than_chance_is_not(target, predicted):
    assert doubts(target, predicted) == []


def test_swapped_folders_are_said(tmp_path, image_config, own_code, train, capsys):
    own_code("net", SMALL_NETWORK)
    save_images(tmp_path / "parts" / "train", {"NG": 40, "OK": 40}, size=(16, 16))
    save_images(tmp_path / "parts" / "val", {"OK": 20, "NG": 20}, size=(16, 16))  # swapped
    config = image_config(tmp_path / "parts", image_size=16)
    config["arch"] = {"type": "net.small"}
    train(config, "--epochs", 4, "-s", "lr_scheduler=null")
    assert "are the labels of training and validation the same?" in capsys.readouterr().out


def test_statistics_that_do_not_fit_contradict_the_training():
    torch.manual_seed(0)
    target = torch.arange(40) % 2
    data = target[:, None] * 2.0 + torch.randn(40, 6) * 0.1 + 50
    net = nn.Sequential(nn.BatchNorm1d(6, momentum=1e-6), nn.Linear(6, 2))
    with torch.no_grad():
        net[1].weight[:] = torch.tensor([[-1.0], [1.0]])
        net[1].bias.zero_()
    task = SupervisedTask(nn.functional.cross_entropy)
    batches = [(data[:20], target[:20]), (data[20:], target[20:])]
    [line] = contradiction(net, batches, task, Engine("cpu"))
    assert "100.0% of 40 training samples" in line
    assert "50.0% of the same in evaluation mode" in line
    net[0].momentum = None
    net.train()(data)
    assert contradiction(net, batches, task, Engine("cpu")) == []


@pytest.mark.slow
def test_few_steps_with_torchvisions_momentum_are_recognised(digits, train, capsys):
    """MobileNetV3's batch norms have momentum 0.01: ten steps leave the initial statistics."""
    changes = {"arch": "mobilenet_v3_small", "trainer.epochs": 1, "trainer.len_epoch": 10}
    trainer = build(digits(changes | {"lr_scheduler": None}))
    trainer.train()
    norm = trainer.model.features[0][1]
    mean = norm.running_mean.clone()
    assert (norm.running_var - 1).abs().mean() > 0.3  # not the initial ones
    state = torch.load(trainer.config.save_dir / "model_best.pth", weights_only=True)
    running = state["trainer"]["running_statistics"]
    assert torch.equal(state["state_dict"]["features.0.1.running_mean"], mean)
    assert (running["features.0.1.running_var"] - 1).abs().max() < 0.2
