"""What testing adds to families of runs: the test of each, and one report on the samples of all
folds, each judged by a network that did not know it.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import nn

from base import BaseDataLoader
from base.base_task import Batch
from base.samples import batches_of
from logger.logger import setup_logging
from tester.inspection import chosen, inspect
from tester.language import system_language
from tester.report import report_test
from tester.trained import Test, build_eval_loader
from trainer.build import build_trained_network
from trainer.family import call_script
from utils import checkpoint
from utils.config.config import ConfigParser
from utils.engine.engine import Tensors


class Networks(nn.Module):
    """Those of all folds; the `active` one answers."""

    def __init__(self, networks: list[nn.Module]):
        super().__init__()
        self.networks, self.active = nn.ModuleList(networks), 0

    def forward(self, *args: Tensors, **kwargs: Tensors) -> Tensors:
        return self.networks[self.active](*args, **kwargs)


class OutOfFold(Test):
    """A test of the samples of all folds, fold by fold.

    Args:
        configs: of the folds' runs, with their checkpoints
        folder: for the report
        device: as on the command line
    """

    def __init__(self, configs: list[ConfigParser], folder: Path, device: str | None):
        self.configs, self.own_folder = configs, folder
        parts = [build_eval_loader(config, "test").dataset.indices for config in configs]
        self.counts, self.order = list(map(len, parts)), np.concatenate(parts)
        super().__init__(configs[0], device, "test", threads=1)

    def build_loader(self) -> BaseDataLoader:
        loader = build_eval_loader(self.config, "train")
        loader.dataset.indices = self.order  # of all folds
        return loader

    def build_network(self) -> nn.Module:
        return Networks([build_trained_network(config) for config in self.configs])

    def compare_data(self) -> None:
        """Nothing: each network knows a part of this data."""

    def batches(self, loader: BaseDataLoader) -> Iterator[Batch]:
        start, size = 0, loader.batch_size
        for number, count in enumerate(self.counts):
            ends = range(start, start + count, size)
            chunks = [list(range(first, min(first + size, start + count))) for first in ends]
            for batch in batches_of(loader, chunks, loader.num_workers):
                self.model.active = number
                yield batch
            start += count

    @property
    def folder(self) -> Path:
        return self.own_folder

    @property
    def run(self) -> None:
        """None: there are as many as folds."""


def judge(run: Path, device: str | None) -> dict:
    """Test a run on its test samples, by test.py; returns the content of result.json.

    Raises UserError or RunError if it cannot be tested.
    """
    return call_script("test", ["-r", str(run)], device)


def report(runs: list[Path], folder: Path, device: str | None) -> dict:
    """Write report.html, predictions.csv and result.json into `folder`; returns the last's content.

    With a section "inspection" its threshold is chosen on these samples, too.

    Args:
        runs: the folders of the folds' runs, each sample being tested in one of them
        folder: of the family
        device: as on the command line
    """
    setup_logging()
    found = [checkpoint.find(run, best=True) for run in runs]
    configs = [ConfigParser(state["config"], path, origin=str(path), continued=True)
               for path, state in found]  # fmt: skip
    test = OutOfFold(configs, folder, device)
    section = test.config.get("inspection")
    start_time = time.perf_counter()
    predictions, samples, metrics = test.predict(test.loader, test.metrics, "out of fold")
    seconds, inspection = time.perf_counter() - start_time, None
    if section is not None and predictions.is_classification:
        threshold = chosen(test, section, predictions)
        # once more: which images are kept as mistakes depends on it
        predictions, *_ = test.predict(test.loader, {}, "out of fold", threshold)
        inspection = inspect(predictions, threshold)
    result = predictions, samples, metrics, seconds, inspection
    return report_test(test, *result, None, {}, None, system_language())
