"""The same samples put to several networks: checkpoint and file, 32 bits and 8."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer.evaluate import evaluate, progress
from trainer.predictions import is_classification
from trainer.start import keep_normalisation, loader_of, machine, trained_state

CHECKED = 12  # samples that --check is content with


@dataclass(frozen=True)
class Judgement:
    """What a network said of the samples.

    Attributes:
        metrics: the loss and the config's metrics
        outputs: (N, ...)
        accuracy: the share of samples whose likeliest class is right; None where there are no classes
    """

    metrics: dict[str, float]
    outputs: np.ndarray
    accuracy: float | None


class Judge:
    """Puts networks to the validation samples of a config, or to its test samples where it sets none apart.

    Args:
        config: the ConfigParser of a trained network

    Attributes:
        split: "val" or "test"
        loader: of those samples
        state: what the checkpoint says; the shape of its input is that of the samples
    """

    def __init__(self, config: Any):
        self.config, self.state = config, trained_state(config)
        self.engine = machine(config, precision="fp32")  # as the files compute
        keep_normalisation(config, self.state["input"])
        own = config.get("valid_data_loader") is not None or config.init_obj("data_loader").has_validation
        self.split = "val" if own else "test"
        self.loader = loader_of(config, self.split)
        self.state["input"] |= {"shape": list(self.loader.example.shape)}  # another size may be asked for

    def __call__(self, network: nn.Module, in_sizes: Callable[[Iterable], Iterable] = iter) -> Judgement:
        """`in_sizes` makes other batches of the loader's."""
        outputs, right = [], []

        def keep(data: Tensor, target: Tensor, output: Tensor) -> None:
            outputs.append(output.float().cpu())
            right.append((output.argmax(1) == target).cpu() if is_classification(target, output) else None)

        criterion = self.engine.to_device(self.config.init_obj("loss"))
        metrics = self.engine.to_device(self.config.init_obj("metrics"))
        batches = progress(in_sizes(self._batches()), self.split)
        found = evaluate(self.engine.prepare(network), batches, criterion, metrics, self.engine, keep)
        there = all(batch is not None for batch in right)
        return Judgement(found, torch.cat(outputs).numpy(), torch.cat(right).double().mean().item() if there else None)

    def training(self, count: int) -> Tensor:
        """`count` training samples (count, ...), evenly spread over all, as the network is evaluated on them."""
        samples = loader_of(self.config, "train").dataset
        count = min(count, len(samples), CHECKED if self.config.arguments.check else count)
        return torch.stack([samples[0, int(place), 0][0] for place in np.linspace(0, len(samples) - 1, count)])

    def _batches(self) -> Iterable:
        if not self.config.arguments.check:
            return self.loader
        return [tuple(part[:CHECKED] for part in batch) for batch in islice(self.loader, 1)]
