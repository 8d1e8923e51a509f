"""What testing adds to families of runs: the test of each, and one report on the samples of all
folds, each judged by a network that did not know it.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import nn
from torch.utils.data import BatchSampler

from base import BaseDataLoader
from base.base_data_loader import ChosenBatches
from base.base_task import Batch
from logger.logger import setup_logging
from tester.inspection import chosen
from tester.language import system_language
from tester.report import report_test
from tester.trained import Test, build_eval_loader
from trainer.build import build_trained_network
from trainer.family import call_script
from utils import checkpoint
from utils.config.config import ConfigParser
from utils.engine.engine import Tensors


class Networks(nn.Module):
    """The networks of all folds; calls go to the `active` one."""

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
        self.configs = configs
        parts = [build_eval_loader(config, "test").dataset.indices for config in configs]
        self.counts, self.order = list(map(len, parts)), np.concatenate(parts)
        super().__init__(configs[0], device, "test", threads=1)
        self.name, self.folds = folder.parent.name, len(configs)
        self.run, self.folder = None, folder

    def build_loader(self) -> BaseDataLoader:
        loader = build_eval_loader(self.config, "train")
        loader.dataset.indices = self.order  # of all folds
        return loader

    def build_network(self) -> nn.Module:
        return Networks([build_trained_network(config) for config in self.configs])

    def compare_data(self) -> None:
        """Does nothing: each network was trained on a part of this data."""

    def batches(self, loader: BaseDataLoader) -> Iterator[Batch]:
        start = 0
        for number, count in enumerate(self.counts):
            positions = range(start, start + count)
            chunks = [*BatchSampler(positions, loader.batch_size, drop_last=False)]
            for batch in ChosenBatches(loader, chunks, loader.num_workers):
                self.model.active = number
                yield batch
            start += count


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
    section, threshold = test.config.get("inspection"), None
    result = test.predict(test.loader, test.metrics, "out of fold")
    if section is not None and result.predictions.is_classification:
        threshold = chosen(test, section, result.predictions)
        del threshold["validation"]  # the rates of these samples again
        # once more: which images are kept as mistakes depends on it
        predictions = test.predict(test.loader, {}, "out of fold", threshold).predictions
        result = result._replace(predictions=predictions)
    return report_test(test, result, threshold, None, system_language())
