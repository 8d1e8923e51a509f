"""Evaluate several networks on the same samples: checkpoint and file, fp32 and int8."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from base.base_data_loader import BaseDataLoader
from base.base_task import Step
from tester.predictions import is_classification
from tester.trained import build_engine, build_eval_loader
from trainer.build import build_task, build_trained_network, restore_task, trained_state
from trainer.evaluate import evaluate, progress
from utils.config.config import ConfigParser
from utils.engine.engine import Engine

CHECK_SAMPLES = 12  # of --check


@dataclass(frozen=True)
class Evaluation:
    """How a network did on the samples.

    Attributes:
        metrics: the loss, the config's metrics and, of a classifier, the accuracy
        outputs: (N, ...)
        accuracy: share of samples with the right predicted class; None if there are no classes
    """

    metrics: dict[str, float]
    outputs: np.ndarray
    accuracy: float | None


class Evaluator:
    """Evaluates networks on the validation samples of a config, or on its test samples if it has
    none. Everything is read or built when it is first used.

    Args:
        config: of a trained network
        device: as on the command line
        check: use only a few samples
        threads: threads that run an exported file; 0 for all
    """

    def __init__(
        self, config: ConfigParser, device: str | None, check: bool = False, threads: int = 1
    ):
        self.config, self.device, self.check, self.threads = config, device, check, threads

    def for_run(self, path: Path) -> "Evaluator":
        """Return an evaluator for another run, checkpoint or exported file. Raises UserError."""
        return Evaluator(self.config.from_checkpoint(path), self.device, self.check, self.threads)

    @cached_property
    def network(self) -> nn.Module:
        """The trained network, as the config's checkpoint or exported file has it."""
        return build_trained_network(self.config, self.threads)

    @cached_property
    def engine(self) -> Engine:
        """Computes in fp32, as the files do."""
        return build_engine(self.config, self.device, precision="fp32")

    @cached_property
    def split(self) -> str:
        """Which samples `loader` serves: "val" or "test"."""
        separate = self.config.get("valid_data_loader") is not None
        return "val" if separate or self.config.init_obj("data_loader").has_validation else "test"

    @cached_property
    def loader(self) -> BaseDataLoader:
        """The samples."""
        return build_eval_loader(self.config, self.split)

    @cached_property
    def state(self) -> dict:
        """The checkpoint's content; the shape of its "input" is the samples', as the config may
        ask for another image size.
        """
        state = trained_state(self.config)
        return state | {"input": state["input"] | {"shape": list(self.loader.example.shape)}}

    def __call__(
        self, network: nn.Module, rebatch: Callable[[Iterable], Iterable] = iter
    ) -> Evaluation:
        """Evaluate `network`; `rebatch` makes other batches of the loader's."""
        outputs, correct, batches = [], [], self.loader
        if self.check:
            batches = [tuple(part[:CHECK_SAMPLES] for part in next(iter(self.loader)))]

        def keep(step: Step) -> None:
            outputs.append(step.output.float().cpu())
            if is_classification(step.target, step.output):
                correct.append((step.output.argmax(1) == step.target).cpu())

        criterion, engine = self.config.init_obj("loss"), self.engine
        task = build_task(self.config, engine, self.network, criterion, self.loader)
        restore_task(task, self.state, self.config, engine)
        metrics = evaluate(
            self.engine.prepare(network),
            progress(rebatch(batches), self.split),
            task,
            self.engine.to_device(self.config.init_obj("metrics")),
            self.engine,
            keep,
        )
        if len(correct) < len(outputs):
            return Evaluation(metrics, torch.cat(outputs).numpy(), None)
        accuracy = torch.cat(correct).double().mean().item()
        return Evaluation(metrics | {"accuracy": accuracy}, torch.cat(outputs).numpy(), accuracy)

    def training_samples(self, count: int) -> Tensor:
        """Return `count` training samples (count, ...), evenly spaced and not augmented."""
        samples = build_eval_loader(self.config, "train").dataset
        count = min(count, len(samples), CHECK_SAMPLES if self.check else count)
        positions = np.linspace(0, len(samples) - 1, count).astype(int).tolist()
        return torch.stack([samples[0, position, 0][0] for position in positions])
