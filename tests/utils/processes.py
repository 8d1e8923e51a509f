"""Helpers for tests of several processes, on gloo, on this machine."""

import csv
import multiprocessing
import os
import socket
import traceback

import pytest
import torch

from tests.conftest import last_checkpoint
from utils import run_folder

# Without dropout, which differs between processes.
NETWORKS = """
from torch import nn
def plain(width: int = 6):
    convolution = nn.Conv2d(1, width, 5, 4)
    return nn.Sequential(convolution, nn.GELU(), nn.Flatten(), nn.Linear(36 * width, 10))
class Idle(nn.Sequential):
    def __init__(self):
        super().__init__(*plain())
        self.idle = nn.Linear(3, 3)
    def forward(self, x):
        for layer in list(self)[:4]:
            x = layer(x)
        return x
"""


def run_processes(count, action, *arguments):
    """What `action(*arguments)` returns in each of `count` processes, started as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # torch is imported already

    def run(rank, sender):
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        try:
            sender.send(action(*arguments))
        except BaseException as error:
            traceback.print_exc()
            sender.send(repr(error))

    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [
        context.Process(target=run, args=(rank, sender)) for rank, (_, sender) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    try:
        assert all(receiver.poll(100) for receiver, _ in pipes), "the processes hang"
        return [receiver.recv() for receiver, _ in pipes]
    finally:
        for process in processes:
            process.join(10)
            process.kill()


def logged(run):
    """The rows of a run's metrics.csv, without times."""
    with open(run_folder.log_dir_for(run) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {k: float(v) for k, v in row.items() if k not in ("seconds", "samples_per_second")}
        for row in rows
    ]


def assert_near(run, other, weights=1e-4):
    """Equal metrics, losses within 1e-5, weights within what another order of sums explains."""
    for one, two in zip(logged(run), logged(other), strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            # metrics are float32; one more correct sample counts 1e-3
            tolerance = 1e-5 if "loss" in name or "auroc" in name.lower() else 1e-6
            assert two[name] == pytest.approx(value, abs=tolerance), name
    states = [last_checkpoint(folder)["state_dict"] for folder in (run, other)]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=weights, rtol=0)
