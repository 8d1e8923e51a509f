"""Training loops written for pytorch-template; how to move one: docs/from-pytorch-template.md."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from base import BaseDataLoader, BaseTrainer
from base.samples import Batch
from utils.engine import distributed
from utils.engine.engine import HALF
from utils.errors import UserError
from utils.util import MetricTracker


class TemplateTrainer(BaseTrainer):
    """Runs a `_train_epoch` and a `_valid_epoch` that were written for pytorch-template.

    As there, `_train_epoch` calls `_valid_epoch` and steps `lr_scheduler`, and the attributes have
    the same names. An epoch has `len_epoch` batches, other ones in each epoch. A loop that moves
    its batches itself computes in fp32 and in one process.
    """

    validates_itself = True
    not_kept = (
        *BaseTrainer.not_kept,
        "device", "do_validation", "metric_ftns", "train_metrics", "valid_metrics", "log_step",
        "lr_scheduler",
    )  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        unsupported = {
            "trainer.ema_decay": self.ema is not None,
            "engine.precision": self.engine.precision in HALF,
            "several processes": distributed.world_size() > 1,
        }
        for key in filter(unsupported.get, unsupported):
            name = type(self).__name__
            raise UserError(f"{key}: a TemplateTrainer ({name}) does not support it, Trainer does")
        self.device, self.do_validation = self.engine.device, self.valid_data_loader is not None
        self.metric_ftns = [_named(name, metric) for name, metric in self.metrics.items()]
        self.train_metrics = MetricTracker("loss", *self.metrics, writer=self.writer)
        self.valid_metrics = MetricTracker("loss", *self.metrics)  # the epoch's means are shown
        self.log_step = int(self.data_loader.batch_size**0.5)
        self.lr_scheduler = self.schedule.scheduler
        self.schedule.interval = None  # the loop steps it
        self.data_loader = EpochLoader(self.data_loader, self.len_epoch)

    def before_epoch(self, epoch: int) -> None:
        self.data_loader.len_epoch = self.len_epoch  # which --check changes

    def _progress(self, batch_idx: int) -> str:
        """How far the epoch is: "[10/50 (20%)]"."""
        return f"[{batch_idx}/{self.len_epoch} ({100 * batch_idx / self.len_epoch:.0f}%)]"


class EpochLoader:
    """A loader whose pass is one epoch: `len_epoch` batches of its endless stream."""

    def __init__(self, loader: BaseDataLoader, len_epoch: int):
        self.loader, self.len_epoch, self.epoch = loader, len_epoch, 1

    def __len__(self) -> int:
        return self.len_epoch

    def __iter__(self) -> Iterator[Batch]:
        return islice(self.loader.batches((self.epoch - 1) * self.len_epoch), self.len_epoch)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def _named(name: str, metric: Callable) -> Callable:
    function = partial(metric)
    function.__name__ = name
    return function
