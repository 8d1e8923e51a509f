"""What compiling, bfloat16, the memory format and larger batches change on a CPU."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from model.model import LeNet
from tests.benchmarks.measure import in_turn
from utils.engine.engine import keep_freed_memory

NETWORKS = {  # name -> (network, input (channels, height, width), batch size)
    "LeNet at 28": (LeNet, (1, 28, 28), 128),
    "ResNet-18 at 64": ("resnet18", (3, 64, 64), 32),
    "ResNet-18 at 224": ("resnet18", (3, 224, 224), 8),
    "MobileNetV2 at 64": ("mobilenet_v2", (3, 64, 64), 32),
    "MobileNetV2 at 224": ("mobilenet_v2", (3, 224, 224), 8),
}
WAYS = {  # name -> (channels last, compiled, bfloat16)
    "contiguous": (False, False, False),
    "channels last": (True, False, False),
    "bf16": (True, False, True),
    "compiled": (True, True, False),
    "compiled, bf16": (True, True, True),
}


def ways_to_compute(rounds: int, names: list[str] | None = None) -> dict[str, float]:
    """Time of a training step and of an evaluation in each way over that of channels last."""
    keep_freed_memory()
    figures = {}
    for name in names or NETWORKS:
        for training in (True, False):
            actions = {way: _action(name, training, *settings) for way, settings in WAYS.items()}
            if not training:
                actions["batches of 4 times the size"] = _action(name, False, True, larger=4)
            timings = in_turn(rounds, actions, warm_up=2)
            kind = "training" if training else "evaluation"
            for way in actions:
                figures[f"{name}, {kind}: {way}"] = timings.ratio(way, "channels last")
    return figures


def _action(
    name: str,
    training: bool,
    channels_last: bool,
    compiled: bool = False,
    bf16: bool = False,
    larger: int = 1,
) -> Callable[[], None]:
    """A function that computes some batches; as many samples in each way."""
    builder, shape, size = NETWORKS[name]
    torch.manual_seed(0)
    if isinstance(builder, str):
        from torchvision import models

        network = models.get_model(builder, num_classes=10)
    else:
        network = builder(num_classes=10)
    data, target = torch.rand(size * larger, *shape), torch.arange(size * larger) % 10
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
        data = data.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
    model: nn.Module = torch.compile(network, dynamic=False) if compiled else network
    model.train(training)
    repeats = max(1, 100_000 // (shape[1] * shape[2])) * (1 if training else 4) // larger

    def run() -> None:
        for _ in range(repeats):
            with (
                torch.set_grad_enabled(training),
                torch.autocast("cpu", torch.bfloat16, enabled=bf16),
            ):
                output = model(data)
            if training:
                F.cross_entropy(output.float(), target).backward()
                optimizer.step()
                optimizer.zero_grad()

    return run
