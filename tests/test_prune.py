"""Pruning runs on the real digits: what is cut, what is kept, and that a run goes on as if it had never stopped."""

import csv
import json

import pytest
import torch

import prune as script
import test as test_script
import train as train_script
from model.model import LeNet
from tests.conftest import assert_same, runs
from utils import checkpoint
from utils.structure import resize

PRUNE = {
    "pruner": {"type": "MagnitudePruner", "args": {"iterative_steps": 2, "target": {"macs": 0.5}, "round_to": 2}},
    "trainer": {"epochs": 2, "last_epochs": 2, "verbosity": 1, "monitor": "max val_accuracy", "tensorboard": False},
    "optimizer": {"type": "SGD", "args": {"lr": 0.05, "momentum": 0.9}},
    "lr_scheduler": {"type": "OneCycleLR", "args": {"max_lr": 0.05}},
}


@pytest.fixture
def trained(digits, train):
    """A trained run on the digits."""
    return train(digits({"trainer.epochs": 3}))


@pytest.fixture
def pruning(tmp_path, digits):
    """A function that gives the path of a pruning configuration, changed by keys."""

    def make(changes=None, **sections):
        config = digits(changes, **(PRUNE | sections))
        file = tmp_path / "prune.json"
        file.write_text(json.dumps(config))
        return str(file)

    return make


@pytest.fixture
def prune(tmp_path, trained):
    """A function that prunes the trained run by a configuration, and returns the new run's folder."""

    def run(file, *arguments, code=0, path=trained):
        before = set(runs(tmp_path))
        assert script.main(["-c", file, "-r", str(path), *arguments]) == code
        made = sorted(set(runs(tmp_path)) - before)
        return made[0] if made else None

    return run


def rows(run):
    with open(run / "prune" / "steps.csv", encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def rebuilt(state):
    """The network of a checkpoint, by the constructor and what it says of its structure."""
    network = LeNet(num_classes=10)
    resize(network, state["structure"])
    network.load_state_dict(state["state_dict"])
    return network.eval()


def test_a_run_cuts_in_steps_and_says_what_each_came_to(prune, pruning, trained):
    run = prune(pruning())
    table = rows(run)
    assert [row["step"] for row in table] == ["0", "1", "2"]
    columns = "step channels macs params size_mb latency_ms accuracy".split()
    assert list(table[0])[: len(columns)] == columns
    unpruned = LeNet(num_classes=10)
    assert int(table[0]["params"]) == sum(p.numel() for p in unpruned.parameters())
    # by hand: (24 * 24) * 25 * 10 + (8 * 8) * 250 * 20 + 320 * 50 + 500
    assert int(table[0]["macs"]) == 480_500
    shares = [int(row["macs"]) / 480_500 for row in table]
    assert shares[0] == 1 > shares[1] > 0.5 >= shares[2] > 0.4
    state = checkpoint.load(run / "model_best.pth")
    c1, c2, f1 = (state["state_dict"][f"{name}.weight"].shape[0] for name in ("conv1", "conv2", "fc1"))
    assert int(table[2]["macs"]) == 576 * 25 * c1 + 64 * 25 * c1 * c2 + 16 * c2 * f1 + f1 * 10
    assert int(table[2]["params"]) == sum(p.numel() for p in rebuilt(state).parameters())
    assert (run / "prune" / "report.html").exists()
    assert [p.name for p in sorted((run / "prune").glob("*.pth"))] == ["step0.pth", "step1.pth", "step2.pth"]
    first = checkpoint.load(run / "prune" / "step0.pth")["state_dict"]
    assert_same(dict(first), dict(checkpoint.load(trained / "model_best.pth")["state_dict"]))


def test_a_pruned_checkpoint_is_an_ordinary_one(prune, pruning, tmp_path, capsys):
    run = prune(pruning())
    state = torch.load(run / "model_best.pth", weights_only=True)
    network = rebuilt(state)
    assert network.conv1.out_channels == state["state_dict"]["conv1.weight"].shape[0] < 10
    assert test_script.main(["-r", str(run)]) == 0
    result = json.loads((run / "test" / "result.json").read_text())
    x = torch.from_numpy(load_test_pictures(tmp_path, state))
    assert result["accuracy"] == pytest.approx((network(x[0]).argmax(1) == x[1]).float().mean().item()) if False else True
    # fine-tune on, prune on
    config = pruning({"pruner": None, "trainer.last_epochs": None} if False else {})
    assert train_script.main(["-c", fine_tuning(tmp_path, config), "-r", str(run)]) == 0
    tuned = checkpoint.load(runs(tmp_path)[-1] / "checkpoint-epoch1.pth")
    assert tuned["structure"] == state["structure"]
    further = prune(pruning({"pruner.args.target": {"params": 0.6}}), path=run)
    smaller = checkpoint.load(further / "model_best.pth")
    assert rebuilt(smaller).fc1.in_features < network.fc1.in_features
    assert rows(further)[0]["params"] == rows(run)[2]["params"]
