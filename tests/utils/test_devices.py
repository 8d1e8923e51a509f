"""Devices: which one an engine uses."""

import pytest
import torch

from model.model import LeNet
from utils.engine.engine import Engine, unwrap
from utils.errors import UserError


@pytest.mark.parametrize(
    ("device", "n_gpu", "gpus", "expected", "note"),
    [
        (None, 1, 0, "cpu", None),
        (None, 1, 2, "cuda:0", None),
        (None, 0, 2, "cpu", None),
        ("cpu", 1, 2, "cpu", None),
        ("1", 1, 2, "cuda:1", None),
        ("cuda:1", 1, 2, "cuda:1", None),
        ("0,1", 1, 0, "cpu", "has none; using the CPU"),
        ("2,3", 1, 3, "cuda:2", "has 3; using GPU 2"),
        (None, 4, 2, "cuda:0", "has 2; using GPU 0"),
        ("0,1", 1, 2, "cuda:0", "this is done on one GPU"),
    ],
)
def test_device_that_is_used(monkeypatch, device, n_gpu, gpus, expected, note):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    engine = Engine(device, n_gpu)
    assert str(engine.device) == expected
    assert (note in engine.notes[0]) if note else not engine.notes


def test_missing_gpus_are_a_warning(digits, train, capsys):
    if torch.cuda.is_available():
        pytest.skip("there are GPUs")
    train(digits(), "-d", "0,1")
    assert (
        "warning: GPU 0, 1 asked for, but this machine has none; using the CPU"
        in capsys.readouterr().out
    )
    train(digits(), "-d", "gpu", code=2)
    assert '-d gpu: should be "cpu"' in capsys.readouterr().err
    with pytest.raises(UserError):
        Engine("-1")


def test_unwrap_returns_the_network_itself():
    model = LeNet()
    assert unwrap(Engine("cpu").prepare(model)) is model
    assert unwrap(torch.nn.DataParallel(model)) is model
    assert unwrap(torch.compile(model)) is model
