"""Evaluate several networks on the same samples: checkpoint and file, fp32 and int8."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from base.base_data_loader import BaseDataLoader, ChosenBatches
from base.base_task import BaseTask, Step
from base.samples import spaced
from exporter.deployed import DECISION
from exporter.signature import Place, leaves
from tester.predictions import Predictions
from tester.trained import build_engine, build_eval_loader, decoded
from trainer.build import (
    build_task,
    build_trained_network,
    class_count,
    restore_task,
    trained_state,
)
from trainer.evaluate import evaluate, progress
from utils.config.config import ConfigParser
from utils.engine.engine import Call, Engine, Running, Tensors, map_tensors
from utils.errors import UserError

CHECK_SAMPLES = 12  # of --check


@dataclass(frozen=True)
class Evaluation:
    """How a network did on the samples.

    Attributes:
        metrics: the loss, the config's metrics and, of a classifier, the accuracy
        samples: how many there were
        outputs: of each call of the network, by their places in its output
        probabilities: (N, classes); None if there are no classes
        targets: class numbers (N,); likewise
        decisions: that the file itself gives (N,): class numbers, -1 to ask a person; or None
    """

    metrics: dict[str, float]
    samples: int
    outputs: dict[Place, list[np.ndarray]]
    probabilities: np.ndarray | None = None
    targets: np.ndarray | None = None
    decisions: np.ndarray | None = None

    @property
    def predicted(self) -> np.ndarray | None:
        """The likeliest classes (N,); None if there are no classes."""
        return None if self.probabilities is None else self.probabilities.argmax(1)


class _CalledError(Exception):
    """The task called the network, with the arguments `args`."""


class _Asking(Running):
    """A network that tells its arguments and does not run."""

    def __call__(self, *args: Tensors, **kwargs: Tensors) -> Tensors:
        raise _CalledError(args, kwargs)


class Evaluator:
    """Evaluates networks on the validation samples of a config, or on its test samples if there
    are none. Everything is read or built when it is first used.

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
        """Computes as the files do: on the CPU unless `device` says otherwise, in float32."""
        return build_engine(self.config, self.device or "cpu")

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
    def decoded(self) -> BaseDataLoader:
        """The same samples, as a file takes them that prepares images itself. Raises UserError."""
        return decoded(self.loader)

    def loader_for(self, network: nn.Module) -> BaseDataLoader:
        """The samples as `network` takes them."""
        return self.decoded if getattr(network, "takes_images", False) else self.loader

    @cached_property
    def state(self) -> dict:
        """The checkpoint's content; the shape of its "input" is the samples', as the config may
        ask for another image size.
        """
        state = trained_state(self.config)
        return state | {"input": state["input"] | {"shape": self.loader.input["shape"]}}

    @cached_property
    def task(self) -> BaseTask:
        """Calls the networks."""
        criterion = self.config.init_obj("loss")
        task = build_task(self.config, self.engine, self.network, criterion, self.loader)
        restore_task(task, self.state, self.config, self.engine)
        return task

    def __call__(self, network: nn.Module, sizes: Sequence[int] = ()) -> Evaluation:
        """Evaluate `network` in batches of these `sizes` in turn, by default in the loader's."""
        outputs: dict[Place, list[np.ndarray]] = {}
        counts, decisions, predictions = [], [], Predictions()
        predictions.is_classification = self.task.classifies

        def keep(step: Step) -> None:
            counts.append(step.count)
            predictions.add(step)

        def keep_outputs(network: nn.Module, args: tuple, output: Tensors) -> None:
            for place, tensor in leaves(output):
                outputs.setdefault(place, []).append(tensor.detach().cpu().numpy())
            if DECISION in getattr(network, "further", ()):
                decisions.append(network.further[DECISION].cpu().numpy())

        stop = CHECK_SAMPLES if self.check else None
        positions = islice(range(len(self.loader.dataset)), stop)
        turns = cycle(sizes or [self.loader.batch_size])
        chunks = list(iter(lambda: list(islice(positions, next(turns))), []))
        batches = ChosenBatches(self.loader_for(network), chunks, self.loader.num_workers)
        metrics = self.engine.to_device(self.config.init_obj("metrics", **class_count(self.loader)))
        model = self.engine.prepare(network)
        with model.register_forward_hook(keep_outputs):
            batches = progress(batches, self.split)
            settings = self.task, metrics, self.engine, keep, self.loader.classes
            values = evaluate(model, batches, *settings)
        if not predictions.is_classification:
            return Evaluation(values, sum(counts), outputs)
        probabilities, targets = predictions.probabilities, predictions.targets
        decided = np.concatenate(decisions) if decisions else None
        values["accuracy"] = float((predictions.predicted == targets).mean())
        return Evaluation(values, sum(counts), outputs, probabilities, targets, decided)

    def calls(self, loader: BaseDataLoader, batches: list[list[int]]) -> list[Call]:
        """The arguments with which the task first calls the network, for batches of the samples at
        these positions. Raises UserError if it does not call it.
        """
        model, calls = _Asking(self.engine, self.engine.prepare(self.network)), []
        for batch in map(self.engine.to_device, ChosenBatches(loader, batches)):
            try:
                with torch.no_grad():
                    self.task.step(model, batch)
            except _CalledError as call:
                calls.append(map_tensors(call.args, Tensor.cpu))
        self.network.cpu()  # what is exported is there
        if len(calls) < len(batches):
            raise UserError(f"task: {type(self.task).__name__} does not call the whole network")
        return calls

    def training_calls(self, count: int, as_decoded: bool = False) -> list[Call]:
        """Calls for `count` training samples, one by one, evenly spaced and not augmented."""
        loader = build_eval_loader(self.config, "train")
        loader = decoded(loader) if as_decoded else loader
        positions = spaced(len(loader.dataset), CHECK_SAMPLES if self.check else count)
        return self.calls(loader, [[position] for position in positions])
