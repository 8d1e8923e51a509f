"""The optimizer's parameter groups, compared with torch by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torchvision import models

from tests.conftest import build
from trainer.optimization import parameter_groups


def test_parameter_groups_train_at_their_rates(digits):
    rules = [{"match": "^fc2", "lr": 0.01, "weight_decay": 0.5}, {"match": "^fc", "lr": 0.005}]
    optimizer = {"type": "AdamW", "args": {"lr": 0.001}, "param_groups": rules, "no_decay": True}
    trainer = build(digits({"optimizer": optimizer}))
    group_of = {id(p): group for group in trainer.optimizer.param_groups for p in group["params"]}
    expected = {
        "conv1.weight": (0.001, 0.01),
        "fc1.weight": (0.005, 0.01),
        "fc2.weight": (0.01, 0.5),
        "fc2.bias": (0.01, 0.0),
    }
    named = dict(trainer.model.named_parameters())
    assert len(group_of) == len(named)
    for name, (lr, decay) in expected.items():
        group = group_of[id(named[name])]
        assert (group["lr"], group["weight_decay"]) == (lr, decay)
    # one step by hand, a group at a time
    model = copy.deepcopy(trainer.model)
    data, target = next(trainer.data_loader.batches())
    trainer.model.eval(), model.eval()
    F.cross_entropy(model(data), target).backward()
    for name, p in model.named_parameters():
        lr = 0.01 if name.startswith("fc2") else 0.005 if name.startswith("fc") else 0.001
        decay = 0.0 if p.ndim == 1 else 0.5 if name.startswith("fc2") else 0.01
        torch.optim.AdamW([p], lr=lr, weight_decay=decay).step()
    F.cross_entropy(trainer.model(data), target).backward()
    trainer.optimizer.step()
    parameters = zip(trainer.model.named_parameters(), model.parameters(), strict=True)
    for (name, ours), theirs in parameters:
        torch.testing.assert_close(ours, theirs, msg=name)


def test_layers_further_from_the_head_learn_slower():
    model = models.resnet18(num_classes=3)
    rates = {
        id(p): group["lr"]
        for group in parameter_groups(model, 0.1, layer_decay=0.5)
        for p in group["params"]
    }
    depth = {"fc": 0, "layer4": 1, "layer3": 2, "layer2": 3, "layer1": 4, "bn1": 5, "conv1": 6}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.1 * 0.5 ** depth[name.split(".")[0]])


def test_a_rule_that_matches_nothing_is_an_error(digits, train, capsys):
    train(digits({"optimizer.param_groups": [{"match": "^head", "lr": 0.1}]}), code=2)
    assert 'no parameter matches "^head"; there are conv1.weight' in capsys.readouterr().err
    train(digits({"optimizer.param_groups": [{"match": "fc", "learning_rate": 0.1}]}), code=2)
    assert "optimizer.param_groups" in capsys.readouterr().err
