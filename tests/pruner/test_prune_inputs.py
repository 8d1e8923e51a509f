"""Pruning needs a network with one input, and says so before anything is cut."""

import json

import pytest

import prune as prune_script

OWN = """
import torch
from torch import nn
from trainer.tasks import SupervisedTask

class TwoHalves(nn.Module):
    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.side, self.head = nn.Linear(392, 16), nn.Linear(32, num_classes)
    def forward(self, left, right):
        return self.head(torch.cat([self.side(x.flatten(1)).relu() for x in (left, right)], 1))

class HalvesTask(SupervisedTask):
    def step(self, model, batch):
        return super().step(model, (batch[0].chunk(2, dim=3), batch[1]))
"""


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_network_with_two_inputs_is_not_pruned(digits, train, own_code, tmp_path, capsys, check):
    own_code("own", OWN)
    config = digits({"arch": "own.TwoHalves", "task": "own.HalvesTask", "trainer.epochs": 1})
    run = train(config)
    config["pruner"] = {"type": "MagnitudePruner", "args": {"channel_sparsity": 0.5}}
    (tmp_path / "prune.json").write_text(json.dumps(config))
    capsys.readouterr()
    assert prune_script.main(["-c", str(tmp_path / "prune.json"), "-r", str(run), *check]) == 2
    error = capsys.readouterr().err
    assert "pruner: this network takes 2 inputs (left, right); pruning needs one" in error
