"""Training on a GPU: `python -m pytest -m gpu -n 0`."""

import signal
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import ROOT, assert_same, build, last_checkpoint
from utils import run_folder

pytestmark = pytest.mark.gpu
F1 = {"type": "F1Score", "args": {"task": "multiclass", "num_classes": 10, "average": "macro"}}
STOPPING = """
import os, signal
from trainer import Trainer
class Stopping(Trainer):
    def after_backward(self):
        if self.step == 4 and self.epoch == 1 and "STOP" in os.environ:
            signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.parametrize(
    "engine",
    [
        {"precision": "fp32"},
        {"precision": "bf16", "compile": "reduce-overhead"},
        {"precision": "fp16", "channels_last": False},
        {"precision": "bf16", "compile": "default", "deterministic": True},
    ],
    ids=["fp32", "bf16, CUDA graphs", "fp16", "bf16, compiled"],
)
@pytest.mark.parametrize("steps", [1, 2])
def test_every_setting_learns(gpu, digits, engine, steps):
    changes = {"trainer.epochs": 4 * steps, "trainer.grad_accum_steps": steps}
    changes["trainer.ema_decay"] = 0.9
    trainer = build(digits({"engine": engine, **changes}))
    assert trainer.engine.device.type == gpu
    log = trainer.train()
    assert log["val_accuracy"] > 0.8  # dropout draws other numbers on each GPU


def test_training_is_that_of_a_loop_by_hand(gpu, digits, own_code):
    own_code(
        "linear",
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n",
    )
    config = digits({"arch": "linear.net", "engine": {"precision": "fp32"}, "lr_scheduler": None})
    trainer = build(config)
    by_hand = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)).to(gpu)
    by_hand.load_state_dict(trainer.model.state_dict())
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.002)
    batches = trainer.data_loader.batches()
    for _ in range(2 * len(trainer.data_loader)):
        data, target = (part.to(gpu) for part in next(batches))
        optimizer.zero_grad()
        F.cross_entropy(by_hand(data), target).backward()
        optimizer.step()
    trainer.train()
    for ours, theirs in zip(trainer.model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_run_stopped_within_an_epoch_equals_the_unbroken_one(
    gpu, digits, own_code, train, resume, monkeypatch, precision
):
    """With dropout, a torchmetrics object and an average; `deterministic` promises all bits."""
    own_code("stopping", STOPPING)
    engine = {"precision": precision, "deterministic": True}
    changes = {"engine": engine, "metrics": ["accuracy", F1], "trainer.ema_decay": 0.9}
    config = digits(changes | {"trainer.type": "stopping.Stopping"})
    whole = train(config)
    monkeypatch.setenv("STOP", "1")
    half = train(config, code=128 + signal.SIGTERM)
    monkeypatch.delenv("STOP")
    resume(half)
    one, two = last_checkpoint(half), last_checkpoint(whole)
    for key in ("state_dict", "optimizer", "ema", "monitor_best"):
        assert_same(one[key], two[key], key)


def test_profile_has_times_of_the_gpu(gpu, digits, train, capsys):
    run = train(digits(), "--profile", "6")
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if "%" in line}
    for part in ("forward", "backward", "optimizer"):
        cpu, share, on_gpu = rows[part][1:4]
        assert float(cpu) > 0 < float(on_gpu)
        assert share.endswith("%")
    assert (run_folder.log_dir_for(run) / "trace.json").exists()


def test_full_memory_is_a_sentence(gpu, digits, own_code, train, capsys):
    own_code(
        "large",
        "import torch\n"
        "from model.model import LeNet\n"
        "class Large(LeNet):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x + torch.empty(10**14, device=x.device).sum())\n",
    )
    train(digits({"arch": "large.Large"}), code=1)
    assert "the memory is full; batches of 100 are too large" in capsys.readouterr().err


def test_a_label_out_of_range_is_a_sentence(gpu):
    """In a process of its own: the GPU does nothing more for one that saw an assertion."""
    code = (
        "import torch, sys\n"
        "from utils.errors import gpu_error\n"
        "try:\n"
        "    torch.nn.functional.cross_entropy(torch.zeros(2, 3, device='cuda'),\n"
        "        torch.tensor([0, 7], device='cuda')).item()\n"
        "except Exception as error:\n"
        "    print(gpu_error(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "-d cpu says which" in done.stdout
