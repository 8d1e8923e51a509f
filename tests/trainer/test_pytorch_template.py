"""Files as pytorch-template's users have them, of which only the trainer's constructor is new."""

import argparse
import json
import types
from collections import namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data_loader.data_loaders import DigitsDataLoader
from logger import TensorboardWriter
from parse_config import ConfigParser, CustomArgs
from tests.conftest import assert_same, build, last_checkpoint
from tests.logger.test_logger import events
from utils import (
    MetricTracker,
    checkpoint,
    ensure_dir,
    inf_loop,
    prepare_device,
    read_json,
    run_folder,
    write_json,
)
from utils.config.command_line import build_parser
from utils.errors import UserError

DATA = """
from torchvision import datasets, transforms
from base import BaseDataLoader

class MnistDataLoader(BaseDataLoader):
    def __init__(self, data_dir, batch_size, shuffle=True, validation_split=0.0, num_workers=1,
                 training=True):
        to_input = transforms.Compose([
            transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
        self.data_dir = data_dir
        self.dataset = datasets.MNIST(
            self.data_dir, train=training, download=False, transform=to_input)
        super().__init__(self.dataset, batch_size, shuffle, validation_split, num_workers)
"""
MODEL = """
import torch.nn as nn
import torch.nn.functional as F
from base import BaseModel

class MnistModel(BaseModel):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.conv2_drop = nn.Dropout2d()
        self.fc1 = nn.Linear(320, 50)
        self.fc2 = nn.Linear(50, num_classes)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2_drop(self.conv2(x)), 2))
        x = x.view(-1, 320)
        x = F.relu(self.fc1(x))
        x = F.dropout(x, training=self.training)
        return F.log_softmax(self.fc2(x), dim=1)
"""
LOSS = """
import torch.nn.functional as F

def nll_loss(output, target):
    return F.nll_loss(output, target)
"""
METRIC = """
import torch

def accuracy(output, target):
    with torch.no_grad():
        return torch.sum(torch.argmax(output, dim=1) == target).item() / len(target)

def top_k_acc(output, target, k=3):
    with torch.no_grad():
        chosen = torch.topk(output, k, dim=1)[1]
        return sum(torch.sum(chosen[:, i] == target).item() for i in range(k)) / len(target)
"""
TRAINER = """
import numpy as np
import torch
from torchvision.utils import make_grid
from trainer.pytorch_template import TemplateTrainer as BaseTrainer
from utils import inf_loop, MetricTracker

class MnistTrainer(BaseTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.log_step = int(np.sqrt(self.data_loader.batch_size))
        names = [m.__name__ for m in self.metric_ftns]
        self.train_metrics = MetricTracker('loss', *names, writer=self.writer)
        self.valid_metrics = MetricTracker('loss', *names, writer=self.writer)

    def _train_epoch(self, epoch):
        self.model.train()
        self.train_metrics.reset()
        for batch_idx, (data, target) in enumerate(self.data_loader):
            data, target = data.to(self.device), target.to(self.device)
            self.optimizer.zero_grad()
            output = self.model(data)
            loss = self.criterion(output, target)
            loss.backward()
            self.optimizer.step()

            self.writer.set_step((epoch - 1) * self.len_epoch + batch_idx)
            self.train_metrics.update('loss', loss.item())
            for met in self.metric_ftns:
                self.train_metrics.update(met.__name__, met(output, target))
            if batch_idx % self.log_step == 0:
                self.logger.debug('Epoch {} {} Loss {:.6f}'.format(
                    epoch, self._progress(batch_idx), loss.item()))
                self.writer.add_image('input', make_grid(data.cpu(), nrow=8, normalize=True))
            if batch_idx == self.len_epoch:
                break
        log = self.train_metrics.result()
        if self.do_validation:
            val_log = self._valid_epoch(epoch)
            log.update(**{'val_' + k: v for k, v in val_log.items()})
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        return log

    def _valid_epoch(self, epoch):
        self.model.eval()
        self.valid_metrics.reset()
        with torch.no_grad():
            for batch_idx, (data, target) in enumerate(self.valid_data_loader):
                data, target = data.to(self.device), target.to(self.device)
                output = self.model(data)
                loss = self.criterion(output, target)
                self.writer.set_step(
                    (epoch - 1) * len(self.valid_data_loader) + batch_idx, 'valid')
                self.valid_metrics.update('loss', loss.item())
                for met in self.metric_ftns:
                    self.valid_metrics.update(met.__name__, met(output, target))
                self.writer.add_image('input', make_grid(data.cpu(), nrow=8, normalize=True))
        for name, p in self.model.named_parameters():
            self.writer.add_histogram(name, p, bins='auto')
        return self.valid_metrics.result()
"""


@pytest.fixture
def moved(tmp_path, own_code, data_dir):
    """A function that gives the configuration of pytorch-template's own files.

    The data are the digits, in files like MNIST's.
    """
    for part, subset in ("train", "train"), ("t10k", "test"):
        digits = DigitsDataLoader(str(data_dir), subset=subset).samples
        for kind, values in ("images-idx3", digits.images[:, 0]), ("labels-idx1", digits.targets):
            file = tmp_path / "MNIST" / "raw" / f"{part}-{kind}-ubyte"
            file.parent.mkdir(parents=True, exist_ok=True)
            header = np.array([0x0800 + values.ndim, *values.shape], ">i4")
            file.write_bytes(header.tobytes() + values.to(torch.uint8).numpy().tobytes())
    files = {"data": DATA, "model": MODEL, "loss": LOSS, "metric": METRIC, "trainer": TRAINER}
    for name, text in files.items():
        own_code(f"old_{name}", text)

    def make(**trainer):
        args = {"data_dir": str(tmp_path), "batch_size": 64, "shuffle": True, "num_workers": 0}
        args["validation_split"] = 0.1
        trainer = {"epochs": 3, "save_dir": str(tmp_path / "saved"), "save_period": 1} | trainer
        trainer |= {"type": "old_trainer.MnistTrainer", "monitor": "min val_loss", "early_stop": 10}
        adam = {"lr": 0.001, "weight_decay": 0, "amsgrad": True}
        return {
            "name": "Mnist_LeNet",
            "n_gpu": 0,
            "arch": {"type": "old_model.MnistModel", "args": {}},
            "data_loader": {"type": "old_data.MnistDataLoader", "args": args},
            "optimizer": {"type": "Adam", "args": adam},
            "loss": "old_loss.nll_loss",
            "metrics": ["old_metric.accuracy", "old_metric.top_k_acc"],
            "lr_scheduler": {"type": "StepLR", "args": {"step_size": 2, "gamma": 0.1}},
            "trainer": {"len_epoch": 8, "verbosity": 2, "tensorboard": False} | trainer,
        }

    return make


def test_moved_files_train_resume_and_test(moved, train, resume, capsys):
    import test

    unbroken = train(moved(tensorboard=True))
    output = capsys.readouterr().out
    assert output.count("cannot take images in the memory format channels_last") == 1
    resumed = train(moved(epochs=1))
    resume(resumed, "--epochs", 3)
    one, two = last_checkpoint(unbroken), last_checkpoint(resumed)
    for part in ("state_dict", "optimizer", "lr_scheduler"):
        assert_same(one[part], two[part])
    assert one["optimizer"]["param_groups"][0]["lr"] == pytest.approx(1e-4)  # one step, not two
    assert one["lr_scheduler"]["last_epoch"] == 3

    assert test.main(["-r", str(unbroken), "-d", "cpu"]) == 0
    result = json.loads((unbroken / "test" / "result.json").read_text())
    assert result["old_metric.accuracy"] == pytest.approx(accuracy_by_hand(unbroken, moved()))

    tags = events(run_folder.log_dir_for(unbroken)).Tags()
    assert {"loss/train", "old_metric.accuracy/train", "loss/valid"} <= set(tags["scalars"])
    assert {"input/train", "input/valid"} <= set(tags["images"])
    assert "conv1.weight" in tags["histograms"]


@pytest.mark.slow
def test_network_that_views_its_images_is_exported(moved, train):
    import export

    run = train(moved(epochs=1))
    assert export.main(["-r", str(run), "-d", "cpu"]) == 0
    assert (run / "model.onnx").exists()


def accuracy_by_hand(run, config):
    """The accuracy on MNIST's test samples, by torch and torchvision alone."""
    import old_model
    from torchvision import datasets

    model = old_model.MnistModel().eval()
    model.load_state_dict(checkpoint.load(run / "model_best.pth")["state_dict"])
    data = datasets.MNIST(config["data_loader"]["args"]["data_dir"], train=False)
    images = (data.data[:, None].float() / 255 - 0.1307) / 0.3081
    with torch.no_grad():
        return (model(images).argmax(1) == data.targets).float().mean().item()


def test_moved_loop_trains_what_torch_trains(moved):
    config = moved(epochs=2)
    trainer = build(config)
    import old_model

    model = old_model.MnistModel()
    model.load_state_dict(trainer.model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), 0.001, amsgrad=True, fused=True)
    stream = trainer.data_loader.batches()
    for epoch in (1, 2):
        trainer.engine.seed_epoch(epoch)  # dropout
        model.train()
        for _ in range(8):
            data, target = next(stream)
            optimizer.zero_grad()
            F.nll_loss(model(data), target).backward()
            optimizer.step()
    trainer.train()
    assert_same(dict(trainer.model.state_dict()), dict(model.state_dict()))


def test_without_validation_data_only_training_is_logged(moved):
    config = moved(epochs=1)
    config["data_loader"]["args"]["validation_split"] = 0.0
    config["trainer"] |= {"monitor": "off"}
    log = build(config).train()
    assert not any(name.startswith("val_") for name in log)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"ema_decay": 0.9}, "trainer.ema_decay"), ({"precision": "bf16"}, "engine.precision")],
)
def test_what_such_a_loop_cannot_do_is_refused(moved, changes, message):
    config = moved()
    if "precision" in changes:
        config["engine"] = changes
    else:
        config["trainer"] |= changes
    with pytest.raises(UserError, match=message):
        build(config)


def test_network_that_views_its_images_is_run_contiguous(own_code, digits):
    own_code("old_model", MODEL)
    trainer = build(digits({"arch": "old_model.MnistModel"}))
    assert trainer.engine.memory_format == torch.contiguous_format
    assert trainer.model.conv2.weight.is_contiguous()
    trainer.rehearse()
    assert build(digits()).engine.memory_format == torch.channels_last


def test_init_obj_and_init_ftn_take_a_module(digits):
    config = ConfigParser(digits({"layer": {"type": "Linear", "args": {"in_features": 3}}}))
    layer = config.init_obj("layer", nn, out_features=2)
    assert layer.weight.shape == (2, 3)
    optimizer = config.init_obj("optimizer", torch.optim, layer.parameters())
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["lr"] == 0.002
    assert optimizer.param_groups[0]["params"] == list(layer.parameters())
    schedule = config.init_obj("lr_scheduler", torch.optim.lr_scheduler, optimizer)
    assert schedule.step_size == 2
    assert config.init_ftn("layer", nn)(out_features=4).weight.shape == (4, 3)
    assert config.init_ftn("loss", F).func is F.cross_entropy
    wrong = types.ModuleType("losses")
    wrong.cross_entropi = print
    with pytest.raises(UserError, match='losses has no "cross_entropy"; did you mean'):
        config.init_obj("loss", wrong)


def test_config_parser_takes_modification_and_run_id(digits, tmp_path):
    config = digits()
    changes = {"optimizer;args;lr": 0.5, "trainer;epochs": None, "data_loader;args;batch_size": 7}
    parser = ConfigParser(config, None, changes, "first")
    assert parser["optimizer"]["args"]["lr"] == 0.5
    assert parser["trainer"]["epochs"] == 2
    assert parser["data_loader"]["args"]["batch_size"] == 7
    assert config["optimizer"]["args"]["lr"] == 0.002  # unchanged
    assert parser.save_dir == tmp_path / "saved" / "models" / "Digits" / "first"


def test_custom_args_target_may_be_a_text(digits, tmp_path, monkeypatch):
    option = CustomArgs(["--lr", "--learning_rate"], type=float, target="optimizer;args;lr")
    parser = build_parser("", [option], trains=True)
    assert vars(parser.parse_args(["--lr", "0.5"]))["optimizer.args.lr"] == 0.5

    (tmp_path / "config.json").write_text(json.dumps(digits()))
    command = ["train.py", "-c", str(tmp_path / "config.json"), "--lr", "0.25"]
    monkeypatch.setattr("sys.argv", command)
    parser = argparse.ArgumentParser()
    for flags in (["-c", "--config"], ["-r", "--resume"], ["-d", "--device"]):
        parser.add_argument(*flags, default=None, type=str)
    old_style = namedtuple("CustomArgs", "flags type target")(*option)
    config = ConfigParser.from_args(parser, [old_style])
    assert config["optimizer"]["args"]["lr"] == 0.25


def test_helpers_of_utils(tmp_path):
    tracker = MetricTracker("loss", "accuracy")
    values, counts = [1.0, 2.5, 4.0], [3, 1, 2]
    for value, count in zip(values, counts, strict=True):
        tracker.update("loss", torch.tensor(value), n=count)
    assert tracker.avg("loss") == pytest.approx(np.average(values, weights=counts))
    assert tracker.result() == {"loss": tracker.avg("loss"), "accuracy": 0}
    tracker.reset()
    assert tracker.result() == {"loss": 0, "accuracy": 0}
    endless = inf_loop([1, 2])
    assert [next(endless) for _ in range(5)] == [1, 2, 1, 2, 1]
    assert prepare_device(0) == (torch.device("cpu"), [])
    ensure_dir(tmp_path / "a" / "b")
    write_json({"b": 1, "a": [2]}, tmp_path / "a" / "b" / "x.json")
    assert list(read_json(tmp_path / "a" / "b" / "x.json").items()) == [("b", 1), ("a", [2])]


def test_writer_has_all_of_tensorboards_methods(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    writer = TensorboardWriter(tmp_path)
    writer.set_step(3, "valid")
    for name in vars(SummaryWriter):
        if name.startswith("add_"):
            assert callable(getattr(writer, name))
    writer.add_pr_curve("curve", torch.tensor([0, 1, 1]), torch.tensor([0.1, 0.6, 0.9]))
    writer.add_embedding(torch.randn(4, 3), metadata=list("abcd"))
    writer.add_graph(nn.Linear(3, 2), torch.randn(1, 3))
    writer.add_custom_scalars({"all": {"loss": ["Multiline", ["loss"]]}})
    writer.add_scalar("loss", 0.5)
    writer.close()
    accumulator = events(tmp_path)
    assert accumulator.Scalars("loss/valid")[0].step == 3
    assert "curve/valid" in accumulator.Tags()["tensors"]
    assert accumulator.Tags()["graph"]
