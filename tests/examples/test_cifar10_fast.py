"""configs/cifar10_fast.json, with SmallResNet, on a stand-in for CIFAR-10."""

import pytest
import torch.nn.functional as F

from model.metric import accuracy
from model.resnet_cifar import SmallResNet
from model.weights import load_weights, read_weights
from parse_config import ConfigParser
from tests.conftest import ROOT, assert_same, last_checkpoint
from tests.data_loader.conftest import cifar  # noqa: F401 (a fixture)
from trainer import evaluate
from utils import checkpoint
from utils.config import config_file
from utils.engine.engine import Engine


@pytest.fixture
def recipe(cifar, tmp_path):  # noqa: F811
    config = config_file.read_layers(ROOT / "configs" / "cifar10_fast.json")[0]
    config["data_loader"]["args"] |= {"data_dir": str(cifar), "batch_size": 20}
    config["test_data_loader"]["args"]["data_dir"] = str(cifar)
    config["arch"]["args"] = {"width": 4}
    config["engine"] = {"precision": "bf16"}
    config["optimizer"]["args"]["lr"] = config["lr_scheduler"]["args"]["max_lr"] = 0.1
    config["trainer"] |= {"save_dir": str(tmp_path / "saved"), "epochs": 8, "tensorboard": False}
    config["trainer"] |= {"save_freq": 1, "ema_decay": 0.8}
    return config


@pytest.mark.slow
def test_recipe_learns_and_is_resumed_exactly(recipe, train, resume):
    whole = train(recipe)
    half = train(recipe, "-s", "lr_scheduler.args.total_steps=80", "trainer.epochs=4")
    resume(half, "-s", "trainer.epochs=8")
    one, two = (last_checkpoint(run) for run in (whole, half))
    for key in ("state_dict", "ema", "rng"):
        assert_same(one[key], two[key])
    model = SmallResNet(width=4)
    load_weights(model, read_weights(next(checkpoint.numbered_checkpoints(whole))), "x", False)
    loader = ConfigParser(recipe).init_obj("test_data_loader", subset="test")
    result = evaluate(model, loader, F.cross_entropy, {"accuracy": accuracy}, Engine("cpu"))
    assert result["accuracy"] > 0.3  # by chance 0.1
