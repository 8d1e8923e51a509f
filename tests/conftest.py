"""What the tests share: a small configuration on the real digits, and the scripts called in this
very process.
"""

import copy
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent

DIGITS = {
    "name": "Digits",
    "seed": 5,
    "arch": {"type": "LeNet", "args": {"num_classes": 10}},
    "data_loader": {
        "type": "DigitsDataLoader",
        "args": {"batch_size": 100, "validation_split": 0.1},
    },
    "optimizer": {"type": "Adam", "args": {"lr": 0.002}},
    "loss": "cross_entropy",
    "metrics": ["accuracy", "top_k_acc"],
    "lr_scheduler": {"type": "StepLR", "args": {"step_size": 2, "gamma": 0.5}},
    "trainer": {"epochs": 2, "verbosity": 1, "monitor": "min val_loss", "tensorboard": False},
}

SMALL_NETWORK = """
from collections import OrderedDict
from torch import nn
def small(num_classes=10):
    return nn.Sequential(OrderedDict(
        conv=nn.Conv2d(1, 8, 3, stride=2), norm=nn.BatchNorm2d(8), act=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(4), flat=nn.Flatten(), head=nn.Linear(128, num_classes)))
def dropping(num_classes=10):
    network = small(num_classes)
    network.flat = nn.Sequential(nn.Flatten(), nn.Dropout())
    return network
"""
OLD_PARTS = {
    "train": {"NG": 10, "OK": 22},
    "val": {"NG": 6, "OK": 9},
    "test": {"NG": 5, "OK": 7},
}


def pytest_configure(config):
    """GPUs are hidden but from tests of them, `pytest -m gpu`: others expect a CPU's bits."""
    if config.option.markexpr.strip() != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # the suite runs in one process per core
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _charts_are_not_drawn(request, monkeypatch):
    """Drawing takes most of a report's time: only tests that are marked `charts` do it."""
    if request.node.get_closest_marker("charts"):
        return

    def save(figure, file, **options):
        if isinstance(file, io.TextIOBase):
            file.write('<svg xmlns="http://www.w3.org/2000/svg"/>')
        else:
            Path(file).touch()

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", save)


@pytest.fixture(autouse=True)
def own_modules(monkeypatch):
    """The packages whose names any config may hold, as if config.json named them."""
    from utils.config.trust import Trust

    modules, contains = {"tests"}, Trust.__contains__

    def is_trusted(self, name):
        return name.partition(".")[0] in modules or contains(self, name)

    monkeypatch.setattr(Trust, "__contains__", is_trusted)
    return modules


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder that holds the digits, read through scikit-learn once per process."""
    from data_loader.data_loaders import read_digits

    folder = tmp_path_factory.mktemp("data")
    read_digits(folder / "digits.npz")
    return folder


@pytest.fixture
def digits(tmp_path, data_dir):
    """A function that gives the digits' configuration, changed by keys like "trainer.epochs" (None
    removes).
    """
    from utils.config.config_file import assign

    def make(changes=None, **sections):
        config = copy.deepcopy(DIGITS) | sections
        config["trainer"]["save_dir"] = str(tmp_path / "saved")
        config["data_loader"]["args"]["data_dir"] = str(data_dir)
        for key, value in (changes or {}).items():
            if value is None:
                config.pop(key)
            else:
                assign(config, key.split("."), value)
        return config

    return make


def save_images(folder, counts, size=(20, 24), suffix=".png"):
    """Noise images (height, width, 3) into folder/CLASS/0.png and so on, each class of its own
    brightness; the arrays.
    """
    generator, arrays = np.random.default_rng(len(str(counts))), {}
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            array = generator.integers(60 * number, 60 * number + 80, (*size, 3)).astype(np.uint8)
            Image.fromarray(array).save(folder / name / f"{index}{suffix}")
            arrays[f"{name}/{index}{suffix}"] = array
    return arrays


@pytest.fixture
def workers_for_memory(monkeypatch):
    """Data in memory is served by as many workers as the config says."""
    from data_loader.datasets import InMemoryDataLoader

    monkeypatch.setattr(InMemoryDataLoader, "in_memory", False)


@pytest.fixture
def image_config(digits):
    """A function that gives the configuration of a small network on a folder of images."""

    def make(folder, **arguments):
        own = {
            "data_dir": str(folder),
            "image_size": 28,
            "channels": 1,
            "batch_size": 8,
            "num_workers": 0,  # to measure how many help, and to start them, takes long
        } | arguments
        loader = {"type": "ImageFolderDataLoader", "args": own}
        config = digits({"arch.args.num_classes": 2, "metrics": ["accuracy"]})
        return config | {"data_loader": loader}

    return make


@pytest.fixture
def old_run(tmp_path):
    """A function that copies a run of the version before November 2026.

    Such a run was made on noise images of 16 x 16 pixels; returns the copy, and arguments that name
    the images.
    """

    def copy_run(source):
        for subset, counts in OLD_PARTS.items():
            save_images(tmp_path / "parts" / subset, counts, size=(16, 16))
        run = tmp_path / "saved" / "models" / "Parts" / "old"
        shutil.copytree(source, run)
        settings = [f"data_loader.args.data_dir={tmp_path / 'parts'}"]
        return run, ["-d", "cpu", "-s", *settings, f"trainer.save_dir={tmp_path / 'saved'}"]

    return copy_run


@pytest.fixture
def frozen(digits, own_code):
    """A function that gives the configuration of a small network whose backbone is frozen."""
    own_code("net", SMALL_NETWORK)

    def make(changes=None):
        return digits(
            {
                "arch": {"type": "net.small", "freeze": "backbone"},
                "data_loader.args.batch_size": 150,
                "optimizer.args.lr": 0.01,
                "lr_scheduler": None,
                "trainer.epochs": 2,
                **(changes or {}),
            }
        )

    return make


@pytest.fixture
def train(tmp_path):
    """A function that trains by a configuration and returns the run's folder."""
    import train as script

    def run(config, *arguments, code=0):
        file = tmp_path / "config.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        before = runs(tmp_path)
        assert script.main(["-c", str(file), *map(str, arguments)]) == code
        made = sorted(set(runs(tmp_path)) - set(before))
        return made[0] if made else None

    return run


@pytest.fixture(scope="session")
def _digits_run(tmp_path_factory, data_dir):
    import train as script

    folder = tmp_path_factory.mktemp("digits")
    config = copy.deepcopy(DIGITS)
    config["trainer"] |= {"epochs": 3, "save_dir": str(folder / "saved")}
    config["data_loader"]["args"]["data_dir"] = str(data_dir)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert script.main(["-c", str(folder / "config.json")]) == 0
    return runs(folder)[0]


@pytest.fixture
def digits_run(_digits_run, tmp_path):
    """A copy of a run of three epochs on the digits, which each process trains once."""
    saved = _digits_run.parents[2]
    shutil.copytree(saved, tmp_path / saved.name)
    return runs(tmp_path)[0]


@pytest.fixture
def family(digits, tmp_path):
    """A function that trains three folds of the digits, changed as in `digits`; the family's
    folder.
    """
    from trainer import folds

    def train_folds(changes=None, *arguments):
        small = {"trainer.epochs": 2, "trainer.tensorboard": False}
        file = tmp_path / "folds.json"
        file.write_text(json.dumps(digits(small | (changes or {}))), encoding="utf-8")
        assert folds.main(["-c", str(file), "-k", "3", *arguments]) == 0
        [folder] = (tmp_path / "saved" / "folds").glob("*/*")
        return folder

    return train_folds


@pytest.fixture
def resume():
    """A function that continues a run."""
    import train as script

    def run(path, *arguments, code=0):
        assert script.main(["-r", str(path), *map(str, arguments)]) == code

    return run


def runs(folder):
    """The run folders made below `folder`."""
    return sorted(p for p in (Path(folder) / "saved" / "models").glob("*/*") if p.is_dir())


def last_checkpoint(run):
    """The newest numbered checkpoint of a run, loaded."""
    from utils import checkpoint

    return checkpoint.load(next(checkpoint.numbered_checkpoints(run)))


def build(config, **attributes):
    """The trainer that train.py would build, its folders created."""
    from parse_config import ConfigParser
    from train import build_trainer

    return build_trainer(ConfigParser(config, **attributes), device=None)


def assert_same(one, two, path=""):
    """Equal to the last bit, through all tensors, lists and dicts, but for an epoch's times."""
    import torch

    assert type(one) is type(two), path
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), path
    elif isinstance(one, dict):
        keys, other = (part.keys() - {"seconds", "samples_per_second"} for part in (one, two))
        assert keys == other, path
        for key in keys:
            assert_same(one[key], two[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), path
        for index, (first, second) in enumerate(zip(one, two, strict=True)):
            assert_same(first, second, f"{path}.{index}")
    else:
        assert one == two, path


class DataSets:
    """The folder of real data sets that KATA_DATA names: `kata_data / "mnist"` skips a test without
    it.
    """

    def __truediv__(self, name):
        folder = os.environ.get("KATA_DATA")
        if not folder:
            pytest.skip(f"needs the data set {name}: KATA_DATA names no folder")
        if not (Path(folder) / name).exists():
            pytest.skip(f"needs the data set {name}, which is not in {folder}")
        return Path(folder) / name


@pytest.fixture
def gpu():
    """The kind of device of a test that needs a GPU, "cuda"; without one it is skipped."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return "cuda"


@pytest.fixture
def kata_data():
    return DataSets()


@pytest.fixture
def own_code(tmp_path, monkeypatch, own_modules):
    """A function that writes a module of the user's own, importable by its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        sys.modules.pop(name, None)
        own_modules.add(name)
        return name

    return write
