"""A trained network, ready to be used, and the samples to use it on."""

import contextlib
import math
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import nn

from base import BaseDataLoader, BaseTask
from base.base_task import Step
from base.samples import Batch
from logger.logger import setup_logging
from tester.novelty import Novelty, watched
from tester.predictions import Predictions
from tester.samples import Samples
from trainer import build
from trainer.agreement import check_agreement
from trainer.decisions import class_number
from trainer.evaluate import Metric, evaluate, progress
from trainer.rehearsal import rehearse
from trainer.workers import choose_workers
from utils import checkpoint
from utils.checkpoint import output_dir
from utils.config.config import ConfigParser
from utils.engine.engine import Engine, unwrap
from utils.errors import UserError, explained
from utils.origin import origin

SHOWN = 10  # samples that are left out


class Result(NamedTuple):
    """What a network says of the samples of a loader."""

    predictions: Predictions  # of a classifier
    samples: Samples  # what any other task says of them
    metrics: dict[str, float]  # the loss, too
    seconds: float


class Test:
    """What a test needs, built in this order. Creates no run folder.

    Args:
        config: of the trained network, which `config.resume` names
        device: as on the command line
        split: the samples to test on: "test", "val" or "train"
        threads: threads that run a file in another format; 0 for all

    Attributes:
        name: of the configuration
        folds: how many networks of a family share the samples; None if it is one network's test
        run: the folder of the tested network's run; None if it is of several
        folder: where the results go: test/ beside a checkpoint; test/<name>/ for another file

    Raises UserError if network, loss, metrics and data do not fit each other.
    """

    def __init__(self, config: ConfigParser, device: str | None, split: str, threads: int):
        setup_logging()
        self.config, self.split, self.threads = config, split, threads
        self.name, self.folds = config["name"], None
        self.run, self.folder = output_dir(config.resume), test_folder(config.resume)
        self.loader, self.trained = self.build_loader(), build.trained_state(config)
        self.engine = build_engine(config, device)
        self.model = self.engine.prepare(self.build_network())
        network, criterion = unwrap(self.model), config.init_obj("loss")
        self.task = build.build_task(config, self.engine, network, criterion, self.loader)
        build.restore_task(self.task, self.trained, config, self.engine)
        metrics = config.init_obj("metrics", **build.class_count(self.loader))
        self.metrics = self.engine.to_device(metrics)
        target, classes = config.option("inspection", "target"), self.loader.classes
        if target is not None and classes is not None:
            class_number(target, classes)
        served = self._served(self.loader)
        rehearse(network, served, self.task, self.metrics, self.engine)
        choose_workers(network, [served], self.task, self.engine)
        self.compare_data()

    def build_loader(self) -> BaseDataLoader:
        return build_eval_loader(self.config, self.split)

    def build_network(self) -> nn.Module:
        return build.build_trained_network(self.config, self.threads)

    def batches(self, loader: BaseDataLoader) -> Iterable[Batch]:
        """The samples of a loader in batches."""
        return loader

    def compare_data(self) -> None:
        """Warn if the training data is available and has changed since the training."""
        known, now = origin(self.trained)["data"], None
        with contextlib.suppress(UserError):  # it may not be available
            now = getattr(self.loader, "trained_on", lambda: None)()
        if None not in (known, now) and known != now:
            self.config.get_logger("test").warning(
                "the training images are not those that the network was trained on: files, pixels "
                "or labels have changed"
            )

    def predict(
        self,
        loader: BaseDataLoader,
        metrics: dict[str, Metric],
        title: str | None = None,
        inspection: dict | None = None,
        novelty: Novelty | None = None,
    ) -> Result:
        """What a classifier predicts for a loader's samples, by the threshold of `inspection` if
        there is one, and how unlike the training data they are by `novelty`; what the task says of
        them, and the loss and `metrics` over them."""
        classes, served = loader.classes, self._served(loader)
        served.to(self.engine.device)
        predictions = Predictions(self.trained["classes"], classes, inspection=inspection)
        predictions.is_classification = self.task.classifies
        samples = Samples(self.task)

        def add(step: Step) -> None:
            if served is not loader:
                data = loader.prepare_decoded(*step.data)
                step = replace(step, data=data.to(self.engine.device))
            predictions.add(step)
            samples.add(step)

        start_time, batches = time.perf_counter(), progress(self.batches(served), title)
        with watched(unwrap(self.model), novelty) as distances:
            values = evaluate(self.model, batches, self.task, metrics, self.engine, add, classes)
        seconds = time.perf_counter() - start_time
        predictions.add_distances(distances)
        if not math.isfinite(values["loss"]):
            self.config.get_logger("test").warning(f"the loss of {loader.subset} is not finite")
        return Result(predictions, samples, values, seconds)

    def _served(self, loader: BaseDataLoader) -> BaseDataLoader:
        """The loader's samples as the network takes them."""
        return decoded(loader) if getattr(unwrap(self.model), "takes_images", False) else loader

    def decide(self) -> None:
        """Give the task what it chooses on validation samples, never on the tested ones.

        Taken from the checkpoint if that has it; else chosen, and stored there.
        """
        if type(self.task).decide is BaseTask.decide:
            return
        decided = self.trained.get("decided")
        if decided is None:
            samples = self.predict(build_eval_loader(self.config, "val"), {}, "validation").samples
            with explained(f"task: {type(self.task).__name__}.decide does not fit its columns"):
                decided = self.task.decide(samples.columns)
            checkpoint.amend(self.config.resume, self.trained, decided=decided)
        self.task.decided = decided

    def groups(self) -> list[str]:
        """The lot, camera or patient of each sample; none if each has its own."""
        groups = getattr(self.loader.samples, "groups", None)
        own = [str(groups[index]) for index in self.loader.dataset.indices] if groups else []
        return own if len(set(own)) < len(own) else []

    def measure_speed(self) -> dict | None:
        """How fast the network answers, if it can measure that itself."""
        measure = getattr(self.model, "measure_speed", None)
        return measure and measure(self.engine.device, self.threads)


def test_folder(tested: Path) -> Path:
    """The folder for results about a checkpoint: test/ beside it; test/<name>/ for another file."""
    return output_dir(tested) / "test" / ("" if tested.suffix in (".pth", ".pt") else tested.name)


def build_engine(config: ConfigParser, device: str | None) -> Engine:
    """The engine for one pass, which is not worth compiling.

    It computes in float32: a threshold is one sample's probability, which 16 bits would move, and
    exported files and predictions compute so, too. An exported file runs on the CPU unless `device`
    says otherwise.
    """
    if device is None and checkpoint.reader_for(Path(config.resume)):
        device = "cpu"
    engine = build.create_engine(config, device, compile=None, precision="fp32")
    build.seed_and_warn(engine, config)
    return engine


def decoded(loader: BaseDataLoader) -> BaseDataLoader:
    """The same samples for an exported file that takes images as they are decoded.

    Raises UserError if the loader does not read images.
    """
    if not hasattr(loader, "decoded"):
        name = type(loader).__name__
        raise UserError(
            "a file that takes images as they are decoded needs a loader of image folders; "
            f"{name} cannot say how an image is decoded"
        )
    return loader.decoded()


def build_eval_loader(config: ConfigParser, split: str) -> BaseDataLoader:
    """The loader of "test", "val" or "train", not shuffled or augmented.

    Raises UserError if there are no such samples, or if they are not for the trained network.
    """
    own = {"test": "test_data_loader", "val": "valid_data_loader"}.get(split)
    loader = build.build_loader(config, own, split) if own else None
    if loader is None:
        training = config.init_obj("data_loader")
        loader = training.split_validation() if split == "val" else training.for_subset(split)
    if loader is None:
        raise UserError("there is no validation data: set data_loader.args.validation_split")
    for line in check_agreement(str(config.resume), checkpoint.load(config.resume), loader):
        config.get_logger("test").warning(line)
    if left_out := loader.left_out():
        lines = [f"{len(left_out)} samples of {split} are left out:", *left_out[:SHOWN]]
        config.get_logger("test").warning("\n  ".join([*lines, *["..."] * (len(left_out) > SHOWN)]))
    return loader
