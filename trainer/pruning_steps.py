"""A step of pruning: the cut, and what it came to in size, speed and accuracy."""

import functools
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from base import BasePruner
from trainer.evaluate import evaluate
from trainer.predictions import Predictions
from utils import distributed
from utils.engine import Engine
from utils.errors import UserError
from utils.latency import onnx_bytes, ratio, side_by_side
from utils.structure import resize, structure_of
from utils.summary import multiply_adds


def add_gradients(network: nn.Module, batches: Iterable, loss: Callable, engine: Engine) -> None:
    """Leave the gradients of `loss`, a function of (output, target), over these batches in the parameters."""
    network.eval()
    network.zero_grad(set_to_none=True)
    for data, target in map(engine.to_device, batches):
        loss(engine.forward(network, data), target).backward()
    for parameter in network.parameters():
        if parameter.grad is not None:
            parameter.grad = distributed.total(parameter.grad)


def cut(pruner: BasePruner, network: nn.Module, example: Tensor, step: int, original: dict[str, Any]) -> bool:
    """What `pruner.cut` does, on all processes: the first one cuts, as that may depend on what is measured."""
    done = distributed.done_by_first(
        lambda: {"last": pruner.cut(network, example, step, original), "structure": structure_of(network)}
    )
    if not distributed.is_first():
        resize(network, done["structure"])
    distributed.take_from_first(network.state_dict().values())
    network.zero_grad(set_to_none=True)
    return done["last"]


class Measurement:
    """Measures the networks of a pruning run; speed always against the original, side by side.

    Args:
        file: where the original is kept as ONNX
        example: a batch of what the network takes, of which the first is used
        threads: how many compute one run in onnxruntime
        batch_size: samples in one run
    """

    def __init__(self, file: Path, example: Tensor, threads: int, batch_size: int):
        self.file, self.threads = file, threads
        self.example = example[:1]
        self.batch = self.example.repeat_interleave(batch_size, dim=0)

    def keep_original(self, network: nn.Module) -> None:
        """Write the network that the others are compared with. Raises UserError where it cannot be written as ONNX."""
        self.file.write_bytes(onnx_bytes(network, self.example))

    @functools.cached_property
    def original(self) -> bytes:
        """What keep_original wrote; nothing where it could not."""
        return self.file.read_bytes() if self.file.exists() else b""

    def size(self, network: nn.Module) -> dict[str, Any]:
        """{"channels", "macs", "params"}."""
        return {
            "channels": sum(widths_of(network).values()),
            "macs": multiply_adds(network, self.example)[0][""],
            "params": sum(parameter.numel() for parameter in network.parameters()),
        }

    def speed(self, network: nn.Module) -> dict[str, float | None]:
        """{"size_mb", "latency_ms", "latency", "torch_ms"}: of the file, by onnxruntime, as a share of the original's."""
        if not self.original:
            return dict.fromkeys(("size_mb", "latency_ms", "latency", "torch_ms"))
        file, was_training = onnx_bytes(network, self.example), network.training
        files = {"original": self.original, "cut": file}
        try:
            with torch.inference_mode():
                network.eval()
                times = side_by_side(files, self.batch, self.threads, torch=lambda: network(self.batch))
        finally:
            network.train(was_training)
        return {
            "size_mb": len(file) / 1e6,
            "latency_ms": statistics.median(times["cut"]),
            "latency": ratio(times, "cut", "original"),
            "torch_ms": statistics.median(times["torch"]),
        }


def accuracy_of(
    network: nn.Module, batches: Any, criterion: Any, engine: Engine, classes: list[str] | None, target: str | None
) -> dict[str, float | None]:
    """{"accuracy", "recall"}: the latter of the class `target`, or of the class with the lowest where none is named.

    None where there are no samples, or the network is no classifier. Raises UserError for a target that is no class.
    """
    if batches is None:
        return {"accuracy": None, "recall": None}
    predictions = Predictions(classes)
    evaluate(network, batches, criterion, {}, engine, predictions.add)
    if not predictions.is_classification:
        return {"accuracy": None, "recall": None}
    confusion = np.sum(distributed.of_all(predictions.confusion().tolist()), axis=0)
    if target is not None and target not in predictions.classes:
        raise UserError(f'inspection.target: "{target}" is none of the classes {", ".join(predictions.classes)}')
    recalls = [row[number] / row.sum() if row.sum() else None for number, row in enumerate(confusion)]
    recall = recalls[predictions.classes.index(target)] if target else min(r for r in recalls if r is not None)
    return {"accuracy": float(confusion.trace() / confusion.sum()), "recall": None if recall is None else float(recall)}


def widths_of(network: nn.Module) -> dict[str, int]:
    """How many channels each convolution and linear layer gives."""
    return {
        name: getattr(module, "out_channels", 0) or module.out_features
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    }
