import contextlib
import functools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from base.average import MovingAverage
from base.base_data_loader import BaseDataLoader
from base.base_task import BaseTask
from base.kept import Kept
from base.monitor import Monitor
from base.schedule import Schedule
from utils import checkpoint, run_folder
from utils.config.config import ConfigParser
from utils.config.hints import BestRule, Duration, NonNegativeInt, PositiveInt, Share, seconds
from utils.engine import distributed, randomness
from utils.engine.engine import Engine, unwrap
from utils.engine.signals import StopSignals
from utils.errors import CheckpointError, Interrupted, RunError, UserError, explained_by, first_line
from utils.origin import origin
from utils.versions import environment, versions


@dataclass(frozen=True)
class Result:
    """What a finished training returns to a script that called it.

    Attributes:
        run: the run's folder
        file: its best checkpoint, or the newest if nothing was monitored
        best: the best value of what was monitored, or None
        best_epoch: the epoch of it; 0 if nothing was monitored
        log: what the last epoch logged; empty if there was nothing left to train
    """

    run: Path
    file: Path
    best: float | None
    best_epoch: int
    log: dict[str, float]


FIXED = ("arch", "optimizer", "lr_scheduler")  # sections that may not change when a run is resumed


class BaseTrainer(ABC):
    """Epochs, monitor, early stop, checkpoints, resuming: write `_train_epoch` and `_valid_epoch`.

    A subclass that adds a keyword to its constructor (`def __init__(self, *args, alpha: float =
    0.2, **kwargs)`) thereby adds a key to the config's trainer section. Whatever else it stores is
    kept in checkpoints, see `base.kept`.

    Args:
        model: the network, as built
        criterion: function of (output, target) that gives the loss, one number
        metrics: name -> function of (output, target) giving the batch's mean, or a torchmetrics
            object
        optimizer: of the model's parameters
        lr_scheduler: the schedule of its learning rate, not started yet
        config: the ConfigParser of the run
        engine: device, precision, processes, seeds
        recorder: logger.Recorder, which shows and keeps what is logged
        data_loader: training batches
        valid_data_loader: validation batches, or None
        task: what a batch means
        optimizers: further ones, by their sections' names
        schedules: further ones, by their sections' names
        freeze: function of (model, epoch) that chooses the parameters to train; True if that
            changed
        epochs: how often to go through the training data
        save_dir: folder in which models/ and log/ are created
        save_freq: epochs between checkpoints; the last one and the best are always kept
        save_every: save within an epoch, too, after so long ("30s", "15min", "2h") or so many
            steps; 0 for never
        keep_last: number of checkpoints to keep beside the best; all by default
        verbosity: what the screen shows: 0 warnings, 1 a line per epoch, 2 progress within an epoch
            too
        monitor: what makes a model the best: "min val_loss", "max val_accuracy", "off"
        early_stop: epochs without improvement after which to stop; 0 for never
        tensorboard: write TensorBoard files
        len_epoch: training batches in an epoch; one pass through the data by default
        ema_decay: keep a moving average of the weights with this decay (say 0.999); it is what is
            evaluated
    """

    script = "train.py"  # the one that resumes such a run
    # What `state_dict` holds under names of its own, or follows from the config.
    not_kept: ClassVar[tuple[str, ...]] = (
        "config", "engine", "recorder", "writer", "logger", "task", "criterion", "metrics",
        "data_loader", "valid_data_loader", "epochs", "save_freq", "keep_last", "verbosity",
        "ema_decay", "freeze", "monitor", "signals", "schedule", "origin", "len_epoch", "epoch",
        "step", "model", "optimizer", "ema", "kept", "save_steps", "save_seconds", "logged_epochs",
        "sessions", "unfinished", "is_whole", "starts_from", "_saved_at", "_steps_since_save",
    )  # fmt: skip
    validates_itself = False  # True if `_train_epoch` calls `_valid_epoch`

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor],
        metrics: dict[str, Callable],
        optimizer: Optimizer,
        lr_scheduler: Schedule,
        config: ConfigParser,
        engine: Engine,
        recorder: Any,
        data_loader: BaseDataLoader,
        valid_data_loader: BaseDataLoader | None = None,
        freeze: Callable[[nn.Module, int], bool] | None = None,
        task: BaseTask | None = None,
        optimizers: dict[str, Optimizer] | None = None,
        schedules: dict[str, Schedule] | None = None,
        *,
        epochs: PositiveInt,
        save_dir: str = "saved/",
        save_freq: PositiveInt = 1,
        save_every: NonNegativeInt | Duration = "15min",
        keep_last: PositiveInt | None = None,
        verbosity: Literal[0, 1, 2] = 2,
        monitor: BestRule = "off",
        early_stop: NonNegativeInt = 0,
        tensorboard: bool = True,
        len_epoch: PositiveInt | None = None,
        ema_decay: Share | None = None,
    ):
        self.config, self.engine, self.recorder = config, engine, recorder
        self.writer, self.logger = recorder.writer, config.get_logger("trainer")
        self.task = task
        self.criterion, self.metrics = engine.to_device(criterion), engine.to_device(metrics)
        self.data_loader, self.valid_data_loader = data_loader, valid_data_loader
        for loader in (data_loader, valid_data_loader):
            if isinstance(loader, BaseDataLoader):
                loader.to(engine.device)
        self.epochs, self.save_freq, self.keep_last = epochs, save_freq, keep_last
        is_count = isinstance(save_every, int)
        self.save_steps = (save_every if is_count else 0) or math.inf
        self.save_seconds = math.inf if is_count else seconds(save_every)
        self.verbosity, self.ema_decay, self.freeze = verbosity, ema_decay, freeze
        self.monitor, self.signals = Monitor(monitor, early_stop), StopSignals()
        self.schedule, self.schedules = lr_scheduler, schedules or {}
        self.optimizers = optimizers or {}
        self.starts_from = None if config.continued else config.resume
        parent = self.starts_from and checkpoint.read_origin(self.starts_from, with_config=True)
        self.origin = {  # of the checkpoints, without their digests
            "data": getattr(data_loader, "digest", None),
            "seed": config.get("seed"),
            "versions": versions(),
            "made_from": parent,
        }
        session = {"epoch": 1, "command": config.command, **environment(engine.device)}
        self.sessions = [session | {"processes": distributed.world_size()}]
        self.len_epoch = len_epoch or len(data_loader)
        self.epoch = 1  # the one in progress, or the next
        self.step = 0  # batches of that epoch already trained; 0 again once it is complete
        self.logged_epochs: list[dict[str, float]] = []  # what each epoch logged
        self.is_whole = False  # between two steps, when `state_dict` has all that was trained
        self.unfinished: Path | None = None  # checkpoint of an epoch's middle; the next replaces it
        self._saved_at, self._steps_since_save = time.monotonic(), 0
        if self.len_epoch == 0:
            raise UserError("data_loader: not one full batch; lower batch_size, or drop_last false")
        if self.monitor.name.startswith("val_") and valid_data_loader is None:
            raise UserError(
                f'trainer.monitor: "{monitor}" needs validation data: set '
                "data_loader.args.validation_split, or add a valid_data_loader"
            )
        if doubt := self.monitor.doubt():
            self.logger.warning(doubt)
        self.set_model(model, optimizer)

    @abstractmethod
    def _train_epoch(self, epoch: int) -> dict[str, float]:
        """Train `len_epoch` batches. Returns what to log: "loss" and whatever you like."""

    def _valid_epoch(self, epoch: int) -> dict[str, float]:
        """Evaluate. What it returns is logged with val_ before each name; nothing by default."""
        return {}

    def before_epoch(self, epoch: int) -> None:
        """Hook before an epoch's first batch; does nothing by default."""

    def after_training(self) -> None:
        """Hook after the last epoch, before the run's end is shown; does nothing by default."""

    def finished(self) -> bool:
        """Whether the run is over; asked before each epoch."""
        return self.epoch > self.epochs or self.monitor.exhausted

    @property
    def best_file(self) -> Path:
        """Path of the best checkpoint."""
        return self.config.save_dir / checkpoint.BEST

    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch: what a schedule that is stepped with them counts."""
        return self.len_epoch

    @property
    def scheduled_epochs(self) -> int:
        """Epochs that a schedule spans."""
        return self.epochs

    def set_model(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Train this model with this optimizer from now on, with a new schedule and average."""
        if self.freeze is not None:
            self.freeze(model, self.epoch)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError(f"arch: all parameters of {type(model).__name__} are frozen")
        self.model, self.optimizer = self.engine.prepare(model), optimizer
        if "kept" in vars(self):  # pruning changes numbers of the network, too
            self.kept.watch(unwrap(self.model))
        for schedule in self.all_schedules:
            # the others' optimizers stay, and so do their schedules
            if schedule.scheduler is None or schedule.optimizer == "optimizer":
                optimizer = self.all_optimizers[schedule.optimizer]
                span = self.scheduled_epochs, self.steps_per_epoch()
                schedule.start(optimizer, *span, self.monitor)
        self.ema = MovingAverage(self.model, self.ema_decay) if self.ema_decay else None

    @property
    def all_optimizers(self) -> dict[str, Optimizer]:
        """By the names of their sections."""
        return {"optimizer": self.optimizer, **self.optimizers}

    @property
    def all_schedules(self) -> list[Schedule]:
        return [self.schedule, *self.schedules.values()]

    @functools.cached_property
    def kept(self) -> Kept:
        """Finds whatever else a subclass or the task changes while it trains."""
        owners = {"trainer": self} if self.task is None else {"trainer": self, "task": self.task}
        kept = Kept(owners, self.engine)
        kept.watch(unwrap(self.model))
        return kept

    @property
    def evaluated_model(self) -> nn.Module:
        """What is validated, kept as the best and exported: the averaged model if there is one."""
        return self.model if self.ema is None else self.ema.module

    def train(self) -> dict[str, float]:
        """Train until the last epoch or the early stop. Returns the last epoch's log.

        Raises RunError if the loss is not finite, Interrupted after a signal, with the state saved.
        """
        start_time, log = time.perf_counter(), {}
        _ = self.kept  # from here on, what changes is kept
        run, config = self.config.save_dir, self.config.config
        resumed = self.config.resume if self.config.continued else None
        if resumed is not None:
            self._resume(resumed)
        else:
            logged = ["loss", *self.metrics]
            logged += [f"val_{name}" for name in logged if self.valid_data_loader is not None]
            self.recorder.begin(run, config, logged)
        parent = self.starts_from and run_folder.run_of(self.starts_from)
        self.recorder.started(run, config, self._about(), parent)
        self._warn_of_ends()
        with self.signals:
            while True:
                with explained_by(resumed):  # only its first epoch shows whether all of it fits
                    if self.finished():
                        break
                    log = self._run_epoch(self.epoch)
                self.epoch, resumed = self.epoch + 1, None
        self.after_training()
        self.recorder.end(run, self.monitor, time.perf_counter() - start_time)
        return log

    def result(self, log: dict[str, float]) -> Result:
        """What `train`, which returned `log`, has made."""
        run, best, monitor = self.config.save_dir, self.best_file, self.monitor
        file = best if best.exists() else next(checkpoint.numbered_checkpoints(run), run)
        return Result(run, file, monitor.best, monitor.best_epoch, log)

    def check(self) -> None:
        """Train one batch, validate one, write a checkpoint, read it back. Raises what fails."""
        _ = self.kept
        resumed = self.config.resume if self.config.continued else None
        with explained_by(resumed):
            if resumed is not None:
                self.load_state_dict(checkpoint.load(resumed))
            self._warn_of_ends()
            self.len_epoch, self.step, self.epochs = 1, 0, self.epoch
            batches = self.valid_data_loader
            self.valid_data_loader = batches and list(islice(batches, 1))
            self._run_epoch(self.epoch)
        distributed.barrier()  # rank zero has written it
        written = next(checkpoint.numbered_checkpoints(self.config.save_dir))
        self.load_state_dict(checkpoint.load(written))
        self.logger.info("check passed")

    def _warn_of_ends(self) -> None:
        for ending in filter(None, (schedule.find_end() for schedule in self.all_schedules)):
            self.logger.warning(ending)

    def _run_epoch(self, epoch: int) -> dict[str, float]:
        start_time = time.perf_counter()
        if self.freeze is not None and self.freeze(unwrap(self.model), epoch):
            # what processes exchange, and what is compiled, depends on what trains
            self.model = self.engine.prepare(unwrap(self.model))
        if self.step == 0:
            self.engine.seed_epoch(epoch)
            self.before_epoch(epoch)
            self.engine.seed_rank(epoch)
        self.data_loader.set_epoch(epoch)  # for a _train_epoch that iterates over the loader itself
        with self._saved_if_it_fails():
            log = self._train_and_validate(epoch)
        for message in self.engine.pop_warnings():
            self.logger.warning(message)
        for name in ("loss", "val_loss"):
            self.fail_unless_finite(name, log.get(name, 0.0))
        is_best = self.monitor.update(epoch, log)
        for schedule in self.all_schedules:
            schedule.after_epoch(log)
        self.step = 0
        log["seconds"] = time.perf_counter() - start_time
        self.logged_epochs.append({"epoch": epoch, "step": epoch * self.len_epoch, **log})
        # before the checkpoint: a run that ends between the two writes the record again
        self.recorder.epoch(self.epochs, self.logged_epochs, is_best, unwrap(self.evaluated_model))
        if is_best:
            self._save(self.best_file)
        stop = self.signals.arrived()
        if stop or self._is_due() or self.signals.save_wanted:
            self._save_numbered()
        if stop and epoch < self.epochs:
            self.recorder.stopped(self.config.save_dir, f"after epoch {epoch}", self.script)
            self.signals.check()
        return log

    def _train_and_validate(self, epoch: int) -> dict[str, float]:
        """What the epoch logs, and the learning rates that it ended with."""
        log = _as_floats(self._train_epoch(epoch))
        rates = {
            "lr" if name == "optimizer" else f"lr_{name}": float(optimizer.param_groups[0]["lr"])
            for name, optimizer in self.all_optimizers.items()
        }
        self.engine.broadcast_buffers(unwrap(self.model), self.ema and self.ema.module)
        self.is_whole = self.step == self.len_epoch
        validation = {} if self.validates_itself else _as_floats(self._valid_epoch(epoch))
        self.is_whole = False
        log |= {f"val_{name}": value for name, value in validation.items()}
        return distributed.broadcast(log) | rates  # all processes must decide alike

    @contextlib.contextmanager
    def _saved_if_it_fails(self) -> Iterator[None]:
        """Around an epoch: a signal or an error ends it, and what was trained is saved."""
        try:
            yield
        except Interrupted:
            self._stopped_in_epoch()
            raise
        except Exception as error:
            # with several processes, the others wait for this one at another place
            if self.is_whole and distributed.world_size() == 1:
                with contextlib.suppress(Exception):  # the first error is the one to report
                    self._stopped_in_epoch()
            if isinstance(error, IndexError) and str(error).startswith("Target"):
                raise UserError(
                    f"data_loader: a label of batch {self.step + 1} in epoch {self.epoch} has no "
                    f"output ({first_line(error)})"
                ) from error
            raise

    def fail_unless_finite(self, name: str, value: float) -> None:
        """Raises RunError for an infinite or NaN loss, before this epoch is written to disk.

        If the data is to blame, it raises UserError, which names a sample.
        """
        if math.isfinite(value):
            return
        good = next(checkpoint.numbered_checkpoints(self.config.save_dir), "none")
        problem, good = f"{name} became {value} in epoch {self.epoch}", f"(last good state: {good})"
        loader, batches, found = self.data_loader, self.recent_batches(), None
        if name.startswith("val_"):
            loader, batches = self.valid_data_loader, range(len(self.valid_data_loader))
        if isinstance(loader, BaseDataLoader):
            found = loader.find_not_finite(batches.start, len(batches))
        if found := next(filter(None, distributed.all_gather(found)), None):
            raise UserError(f"{problem}, as there is NaN or infinity in the data: {found} {good}")
        raise RunError(
            f"{problem}, with learning rate {self.optimizer.param_groups[0]['lr']:.3g} {good}. "
            "A lower learning rate or trainer.clip_grad_norm usually helps."
        )

    def _is_due(self) -> bool:
        """Whether this epoch, which is complete, gets a numbered checkpoint."""
        is_last = self.epoch == self.epochs or self.monitor.exhausted
        return is_last or self.epoch % self.save_freq == 0

    def between_steps(self) -> None:
        """Save if it is time, or if a signal asks for it. Raises Interrupted after one that stops
        the run. On all processes, when `state_dict` has all that was trained.
        """
        self._steps_since_save += 1
        elapsed = time.monotonic() - self._saved_at
        is_time = self._steps_since_save >= self.save_steps or elapsed >= self.save_seconds
        if self.signals.arrived(save=is_time) or self.signals.save_wanted:
            self.fail_unless_finite("loss", self.recent_loss())
            self.signals.check()
            self._save_numbered()

    def recent_loss(self) -> float:
        """The mean loss of the last batches, which decides whether the state is worth saving."""
        return 0.0

    def recent_batches(self) -> range:
        """Numbers of the training batches of which one may have made the loss NaN or infinite."""
        return range((self.epoch - 1) * self.len_epoch, self.epoch * self.len_epoch)

    def _save_numbered(self) -> None:
        path = self.config.save_dir / f"checkpoint-epoch{self.epoch}.pth"
        self._save(path)
        if self.unfinished not in (None, path) and distributed.is_main():
            self.unfinished.unlink(missing_ok=True)
        self.unfinished = path if self.step else None
        checkpoint.keep_last(self.config.save_dir, self.keep_last)

    def _save(self, path: Path) -> None:
        self.writer.flush()
        checkpoint.save(self.state_dict(), path)
        self._saved_at, self._steps_since_save = time.monotonic(), 0
        self.signals.save_wanted = False

    def _stopped_in_epoch(self) -> None:
        self._save_numbered()
        where = f"in epoch {self.epoch} after {self.step} of {self.len_epoch} batches"
        self.recorder.stopped(self.config.save_dir, where, self.script)

    def state_dict(self) -> dict:
        """Everything needed to resume, and to rebuild the network elsewhere, as plain data."""
        network, ema = unwrap(self.model), self.ema
        if ema is not None:
            ema = {"n_averaged": ema.n_averaged, "state_dict": ema.module.state_dict()}
        # each process has its own; after an epoch's end they follow from the seed
        generators = randomness.torch_rng_state(self.engine.device) if self.step else None
        return {
            "arch": type(network).__name__,
            "epoch": self.epoch,
            "state_dict": network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "monitor_best": self.monitor.best,
            "config": self.config.config,
            "lr_scheduler": self.schedule.state_dict(),
            "scaler": self.engine.scaler.state_dict() or None,
            "ema": ema,
            "trainer": {
                "step": self.step,
                "monitor": self.monitor.state_dict(),
                "processes": distributed.world_size(),
                "generators": distributed.all_gather(generators),
                "history": self.logged_epochs,
            },
            "kept": self.kept.state_dict(),
            "rng": randomness.get_state(self.engine.device),
            "structure": getattr(network, "pruned_structure", None),
            "classes": self.data_loader.classes,
            "input": self.data_loader.input,
            "versions": versions(),
            "origin": self.origin | {"figures": self.figures()},
            "sessions": self.sessions,
        }

    def _about(self) -> dict:
        """What run.json says of this run."""
        parent = self.origin["made_from"] or {}
        parent = {key: value for key, value in parent.items() if key != "config"} or None
        return {
            "script": self.script,
            "origin": self.origin | {"made_from": parent},
            "samples": {k: v for k, v in self.figures().items() if k.endswith(" on")},
            "sessions": self.sessions,
        }

    def figures(self) -> dict[str, Any]:
        """What the record of origin says of the network: plain data."""
        figures = {"epoch": self.epoch}
        loaders = ("trained on", self.data_loader), ("validated on", self.valid_data_loader)
        for name, loader in loaders:
            if isinstance(loader, BaseDataLoader):
                figures[name] = len(loader.dataset)
        last = self.logged_epochs[-1] if self.logged_epochs else {}
        return figures | {name: value for name, value in last.items() if "val_" in name}

    def load_state_dict(self, state: dict) -> None:
        """Become the trainer whose `state_dict` this is. Raises UserError if that cannot be."""
        self._check_resumable(state)
        checkpoint.load_into(unwrap(self.model), state["state_dict"], "the checkpoint")
        # before November 2026 nothing else was kept
        self.kept.load_state_dict(state.get("kept", {"parts": {}, "values": {}}))
        try:
            self.engine.load_optimizer(self.optimizer, state["optimizer"])
        except ValueError as error:
            raise CheckpointError(f"the optimizer has other parameters now: {error}") from error
        if state.get("scaler"):
            self.engine.scaler.load_state_dict(state["scaler"])
        self.schedule.load_state_dict(state["lr_scheduler"])
        self.monitor.load_state_dict(state["trainer"]["monitor"])
        if self.ema is not None and (average := state["ema"]) is not None:
            checkpoint.load_into(self.ema.module, average["state_dict"], "the checkpoint's average")
            self.ema.n_averaged = average["n_averaged"]
        self.epoch, self.step = state["epoch"], state["trainer"]["step"]
        self.logged_epochs = state["trainer"].get("history")
        if self.logged_epochs is None:  # before December 2026 only metrics.csv had it
            self.logged_epochs = self.recorder.read_history(self.epoch - (self.step > 0))
        self._load_origin(state)
        randomness.set_state(state["rng"], self.engine.device)
        before, now = state["trainer"].get("processes", 1), distributed.world_size()
        if before != now:
            self.engine.seed_rank(self.epoch, self.step)
            self.logger.warning(
                f"trained by {before} process(es) so far, now by {now}: the same batches, but "
                "summed in another order, so the last bits may differ"
            )
        elif now > 1 and self.step:
            generators = state["trainer"]["generators"][distributed.rank()]
            randomness.set_torch_rng_state(generators, self.engine.device)

    def _load_origin(self, state: dict) -> None:
        """Continue the record of origin; this session is the last of the checkpoint's."""
        record, data = origin(state), self.origin["data"]
        if None not in (record["data"], data) and record["data"] != data:
            self.logger.warning(
                "the training data is not the checkpoint's: files, pixels or labels have changed"
            )
        self.origin |= {"seed": record["seed"], "made_from": record["made_from"]}
        session = self.sessions[-1] | {"epoch": self.epoch + (self.step == 0)}
        self.sessions = [*state.get("sessions", []), session]

    def _check_resumable(self, state: dict) -> None:
        for section in (name for role in FIXED for name in (role, *self.config.own_sections(role))):
            if state["config"].get(section) != self.config.get(section):
                raise UserError(
                    f"{section}: is fixed for a run; for another {section} start a new run "
                    "from its weights: -r PATH -c FILE"
                )
        if missing := {"optimizer", "lr_scheduler", "trainer", "rng"} - state.keys():
            raise CheckpointError(
                f"the checkpoint lacks {', '.join(sorted(missing))} and cannot be resumed; "
                "-r PATH -c FILE starts a new run from its weights"
            )
        if state["trainer"]["step"] > self.len_epoch:
            raise UserError(
                f"the run stopped after batch {state['trainer']['step']} of an epoch that now has "
                f"{self.len_epoch}: resume with the batch size and the data it had"
            )

    def _resume(self, path: Path) -> None:
        with explained_by(path):
            self.load_state_dict(checkpoint.load(path))
        for moved in checkpoint.set_aside(path.parent, self.epoch):
            self.logger.warning(f"{moved.name} is later than {path.name}: moved to {moved.parent}")
        is_best = self.monitor.best_epoch == self.epoch and self.step == 0
        if is_best and not self.best_file.exists():
            checkpoint.save(self.state_dict(), self.best_file)
        if self.step == 0:
            if path.name == checkpoint.BEST and self._is_due():  # ended between the two
                self._save_numbered()
            self.epoch += 1
        self.recorder.resume(self.logged_epochs, (self.epoch - 1) * self.len_epoch + self.step)
        self.unfinished = path if self.step else None
        batch = f", batch {self.step + 1}" if self.step else ""
        self.logger.info(f"continuing {path.parent} in epoch {self.epoch}{batch}")
        self._warn_if_complete()

    def _warn_if_complete(self) -> None:
        if (done := self.epoch - 1) >= self.epochs:
            self.logger.warning(
                f"all {done} epochs are done; for more: -s trainer.epochs={done + 10}"
            )
        elif self.monitor.exhausted:
            self.logger.warning(
                f"stopped early, {self.monitor.waited} epochs after its best; for more: "
                "-s trainer.early_stop=0"
            )


def _as_floats(log: dict[str, Tensor | float]) -> dict[str, float]:
    """A log as floats, which any file can hold. Raises UserError for what is not a number."""
    try:
        return {name: float(value) for name, value in log.items()}
    except (TypeError, ValueError) as error:
        raise UserError(
            f"_train_epoch and _valid_epoch should log one number for each name: {error}"
        ) from error
