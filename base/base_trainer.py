import math
import time
from abc import ABC, abstractmethod
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from torch import nn

from base.base_data_loader import BaseDataLoader
from base.trainer_state import go_on_from, state_of
from utils import checkpoint, distributed
from utils.engine import Engine, unwrap
from utils.errors import Interrupted, RunError, UserError
from utils.hints import NonNegativeInt, PositiveInt, Share
from utils.monitor import Monitor, plain_numbers
from utils.networks import Freezing
from utils.optimization import Schedule, average_of, optimizer_of
from utils.signals import StopSignals


class BaseTrainer(ABC):
    """Epochs, monitor, early stop, checkpoints, resuming: write `_train_epoch`, and `_valid_epoch` if you validate.

    A subclass that adds a keyword to its constructor (`def __init__(self, *args, alpha: float = 0.2, **kwargs)`)
    has thereby added a key to the config's trainer section.

    Args:
        model: the network, as built
        criterion: function of (output, target) that gives the loss, one number
        metrics: name -> function of (output, target) giving the batch's mean, or a torchmetrics object
        config: the ConfigParser of the run
        engine: the machine
        recorder: shows and keeps what is logged
        data_loader: training batches
        valid_data_loader: validation batches, or None
        epochs: how often to go through the training data
        save_dir: folder that models/ and log/ are made in
        save_freq: epochs between checkpoints; the last one and the best are kept in any case
        keep_last: how many numbered checkpoints to keep; all where not given
        verbosity: what the screen shows: 0 warnings, 1 a line per epoch, 2 the progress within an epoch too
        monitor: what makes a model the best: "min val_loss", "max val_accuracy", "off"
        early_stop: epochs without improvement after which to stop; 0 for never
        tensorboard: write TensorBoard files
        len_epoch: training batches in an epoch, however large the data set; one pass where not given
        ema_decay: keep a moving average of the weights with this decay (0.999, say); it is what is evaluated
    """

    script = "train.py"  # continues a run

    def __init__(
        self,
        model: nn.Module,
        criterion: Any,
        metrics: dict[str, Any],
        config: Any,
        engine: Engine,
        recorder: Any,
        data_loader: Any,
        valid_data_loader: Any = None,
        *,
        epochs: PositiveInt,
        save_dir: str = "saved/",
        save_freq: PositiveInt = 1,
        keep_last: PositiveInt | None = None,
        verbosity: Literal[0, 1, 2] = 2,
        monitor: str = "off",
        early_stop: NonNegativeInt = 0,
        tensorboard: bool = True,
        len_epoch: PositiveInt | None = None,
        ema_decay: Share | None = None,
    ):
        self.config, self.engine, self.recorder = config, engine, recorder
        self.writer, self.logger = recorder.writer, config.get_logger("trainer")
        self.criterion, self.metrics = engine.to_device(criterion), engine.to_device(metrics)
        self.data_loader, self.valid_data_loader = data_loader, valid_data_loader
        for loader in (data_loader, valid_data_loader):
            if isinstance(loader, BaseDataLoader):
                loader.to(engine.device)
        self.epochs, self.save_freq, self.keep_last = epochs, save_freq, keep_last
        self.verbosity, self.ema_decay = verbosity, ema_decay
        self.monitor, self.signals = Monitor(monitor, early_stop), StopSignals()
        self.len_epoch = len_epoch or len(data_loader)
        self.epoch = 1  # the one in progress, or the next
        self.step = 0  # its batches that are done; 0 again once the epoch is complete
        if self.len_epoch == 0:
            raise UserError("data_loader: there is not one full batch; make batch_size smaller, or drop_last false")
        if self.monitor.name.startswith("val_") and valid_data_loader is None:
            raise UserError(
                f'trainer.monitor: "{monitor}" needs validation data: set data_loader.args.validation_split, '
                "or add a valid_data_loader"
            )
        self.set_model(model)

    @abstractmethod
    def _train_epoch(self, epoch: int) -> dict[str, float]:
        """Train through `len_epoch` batches; return what to log, "loss" among it. Whatever is added is logged too."""

    def _valid_epoch(self, epoch: int) -> dict[str, float]:
        """Evaluate; what is returned is logged with val_ before each name. By default there is nothing."""
        return {}

    def before_epoch(self, epoch: int) -> None:
        """Called before an epoch's first batch. Meant to be empty."""

    def finished(self) -> bool:
        """Whether the run is over; asked before each epoch."""
        return self.epoch > self.epochs or self.monitor.exhausted

    @property
    def best_file(self) -> Path:
        """The best checkpoint's place."""
        return self.config.save_dir / checkpoint.BEST

    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch: what a schedule that is stepped with them counts."""
        return self.len_epoch

    @property
    def scheduled_epochs(self) -> int:
        """Epochs that a schedule spans."""
        return self.epochs

    def set_model(self, model: nn.Module) -> None:
        """Make `model` the one that trains: move it, and give it an optimizer, a schedule and an average of its own."""
        self.freezing = Freezing(self.config.option("arch", "freeze"), self.config.option("arch", "unfreeze_at"))
        self.freezing.apply(model, self.epoch)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError(f"arch: {type(model).__name__} has no parameters to train, or all are frozen")
        self.model = self.engine.prepare(model)
        # What is frozen is in it too: without gradients it stays as it is, and can be thawed at any time.
        self.optimizer = optimizer_of(self.config, model, self.engine)
        self.schedule = Schedule(self.config, self.optimizer, self.scheduled_epochs, self.steps_per_epoch(), self.monitor)
        self.ema = average_of(unwrap(self.model), self.ema_decay)

    @property
    def evaluated_model(self) -> nn.Module:
        """What validation, the best checkpoint and the export are about: the averaged network, where there is one."""
        return self.model if self.ema is None else self.ema.module

    def train(self) -> dict[str, float]:
        """Train until the last epoch or the early stop; returns the last epoch's log.

        Raises RunError when the loss is no longer a number, Interrupted after a signal, with the state saved.
        """
        begun, log = time.perf_counter(), {}
        if self.config.continued:
            self._resume(self.config.resume)
        else:
            logged = ["loss", *self.metrics]
            logged += [f"val_{name}" for name in logged if self.valid_data_loader is not None]
            self.recorder.begin(self.config, logged)
        with self.signals:
            while not self.finished():
                log = self._run_epoch(self.epoch)
                self.epoch += 1
        self.recorder.end(self.config, self.monitor, time.perf_counter() - begun)
        return log

    def check(self) -> None:
        """A batch of training and one of validation, a checkpoint written and read back. Raises what goes wrong."""
        if self.config.continued:
            self.load_state_dict(checkpoint.load(self.config.resume))
        self.len_epoch, self.step, self.epochs = 1, 0, self.epoch
        self.valid_data_loader = self.valid_data_loader and list(islice(self.valid_data_loader, 1))
        self._run_epoch(self.epoch)
        distributed.barrier()  # the first process has written it
        self.load_state_dict(checkpoint.load(next(checkpoint.of_run(self.config.save_dir))))
        self.logger.info("check passed")

    def _run_epoch(self, epoch: int) -> dict[str, float]:
        begun = time.perf_counter()
        if self.freezing.apply(unwrap(self.model), epoch):
            self.model = self.engine.prepare(unwrap(self.model))  # what is exchanged, or compiled, depends on it
        if self.step == 0:
            self.engine.seed_epoch(epoch)
            self.before_epoch(epoch)
            self.engine.seed_share(epoch)
        self.data_loader.set_epoch(epoch)  # for a _train_epoch that goes through the loader itself
        try:
            log = plain_numbers(self._train_epoch(epoch))
            rate = self.optimizer.param_groups[0]["lr"]
            self.engine.share_buffers(unwrap(self.model), self.ema)
            log |= {f"val_{name}": value for name, value in plain_numbers(self._valid_epoch(epoch)).items()}
            log = distributed.from_first(log)  # what is decided by it must be decided by all
        except Interrupted:
            self._save_numbered()
            where = f"in epoch {epoch} after {self.step} of {self.len_epoch} batches"
            self.recorder.stopped(self.config, where, self.script)
            raise
        for note in self.engine.take_notes():
            self.logger.warning(note)
        for name in ("loss", "val_loss"):
            self.fail_unless_finite(name, log.get(name, 0.0))
        best = self.monitor.update(epoch, log)
        self.schedule.after_epoch(log)
        self.step = 0
        if best:
            checkpoint.save(self.state_dict(), self.best_file)
        stop = self.signals.arrived()
        if stop or epoch % self.save_freq == 0 or epoch == self.epochs or self.monitor.exhausted:
            self._save_numbered()
        log |= {"lr": float(rate), "seconds": time.perf_counter() - begun}
        self.recorder.epoch(epoch, self.epochs, self.len_epoch, log, best, unwrap(self.evaluated_model))
        if stop and epoch < self.epochs:
            self.recorder.stopped(self.config, f"after epoch {epoch}", self.script)
            self.signals.check()
        return log

    def fail_unless_finite(self, name: str, value: float) -> None:
        """Raises RunError for a loss that is no finite number, before anything of this epoch reaches the disk."""
        if not math.isfinite(value):
            good = next(checkpoint.of_run(self.config.save_dir), None)
            rate = self.optimizer.param_groups[0]["lr"]
            raise RunError(
                f"{name} became {value} in epoch {self.epoch}, with learning rate {rate:.3g}; "
                f"{f'the last good state is {good}' if good else 'no epoch was completed before'}. "
                "A lower learning rate or trainer.clip_grad_norm usually helps."
            )

    def _save_numbered(self) -> None:
        checkpoint.save(self.state_dict(), self.config.save_dir / f"checkpoint-epoch{self.epoch}.pth")
        checkpoint.keep_last(self.config.save_dir, self.keep_last)

    def state_dict(self) -> dict:
        """Everything a checkpoint holds, as plain data."""
        return state_of(self)

    def load_state_dict(self, state: dict) -> None:
        """Become the trainer that `state_dict` was taken from. Raises UserError where this is another one."""
        go_on_from(self, state)

    def _resume(self, path: Any) -> None:
        self.load_state_dict(checkpoint.load(path))
        for moved in checkpoint.set_aside(path.parent, self.epoch):
            self.logger.warning(f"{moved.name} is later than {path.name}: moved to {moved.parent}")
        if self.monitor.best_epoch == self.epoch and self.step == 0 and not self.best_file.exists():
            checkpoint.save(self.state_dict(), self.best_file)
        if self.step == 0:
            self.epoch += 1
        self.recorder.resume(self.epoch, (self.epoch - 1) * self.len_epoch + self.step)
        self.logger.info(f"continuing {path.parent} in epoch {self.epoch}{f', batch {self.step + 1}' if self.step else ''}")
        self._say_if_complete()

    def _say_if_complete(self) -> None:
        if self.epoch > self.epochs:
            self.logger.warning(f"all {self.epochs} epochs are done; for more: -s trainer.epochs={self.epochs + 10}")
        elif self.monitor.exhausted:
            waited = self.monitor.waited
            self.logger.warning(f"stopped early, {waited} epochs after its best; for more: -s trainer.early_stop=0")
