"""A trained and exported run, and the comparison of a network with its exported file."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import DIGITS, runs


@pytest.fixture(scope="session")
def exported_run(tmp_path_factory, data_dir):
    """A run of LeNet on the digits with model.onnx (uint8 in, probabilities out), also as int8."""
    import export
    import train as script

    folder = tmp_path_factory.mktemp("exported")
    config = copy.deepcopy(DIGITS)
    config["trainer"] |= {"save_dir": str(folder / "saved"), "epochs": 3}
    config["data_loader"]["args"]["data_dir"] = str(data_dir)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert script.main(["-c", str(folder / "config.json")]) == 0
    [run] = runs(folder)
    changes = ("preprocess=true", "softmax=true", "max_accuracy_drop=0.1")
    options = [f"exporter.args.{change}" for change in changes]
    assert export.main(["-r", str(run), "--int8", "-s", *options]) == 0
    return run


@pytest.fixture
def exported(exported_run, tmp_path):
    """A copy of that run, which a test may change."""
    return Path(shutil.copytree(exported_run, tmp_path / "saved" / "models" / "Digits" / "run"))


def build_family(name):
    """One of torchvision's networks for 3 classes, whose outputs differ from sample to sample."""
    import torch
    from torch import nn

    from model.heads import find_head
    from tests.model.test_networks import CLASSES, FAMILIES, parser
    from trainer.build import build_network

    torch.manual_seed(0)
    size = FAMILIES[name]
    model = build_network(parser({"type": name}), CLASSES, [3, size, size])
    # torchvision's ViT starts with a head of zeros
    nn.init.normal_(model.get_submodule(find_head(model)).weight)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of one batch; else the outputs are nearly zero
    with torch.no_grad():
        model.train()(torch.randn(16 if size < 100 else 4, 3, size, size))
    return model


def export_and_compare(model, size, path, channels=3):
    """Export `model` to `path`; its file is as close to the result in float64 as it is itself.

    For batches of 1 and 5. Rounding alone is 5e-5 of the output in an untrained inception_v3.
    """
    import copy

    import torch

    from exporter.deployed import Deployed
    from exporter.onnx_exporter import OnnxExporter

    torch.manual_seed(1)
    model.eval()
    exporter = OnnxExporter()
    call = (torch.randn(2, channels, size, size),), {}
    deployed = Deployed(model, call, {}, preprocess=False, softmax=False)
    shapes = {"input": ["batch", channels, size, size]}
    metadata = {"signature": {"shapes": shapes, "result": "output"}}
    exporter.export(deployed, {"input": call[0][0]}, path, metadata)
    run = exporter.load(path)
    for count in (1, 5):
        data = torch.randn(count, channels, size, size)
        with torch.no_grad():
            rounded, exact = model(data).numpy(), copy.deepcopy(model).double()(data.double())
        exact = exact.numpy()
        assert np.ptp(exact) > 1e-3  # else the comparison would be of nothing
        tolerance = max(10 * np.abs(rounded - exact).max(), 1e-5 * np.abs(exact).max())
        assert np.abs(run({"input": data.numpy()})["output"] - exact).max() <= tolerance
    assert not path.with_name(f"{path.name}.data").exists()
