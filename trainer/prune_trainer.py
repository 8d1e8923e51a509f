from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from base import BasePruner
from logger import pruning_table, report_pruning
from trainer.pruning_steps import Measurement, accuracy_of, add_gradients, cut, widths_of
from trainer.trainer import Trainer
from utils import checkpoint, distributed
from utils.engine import unwrap
from utils.errors import CheckpointError, RunError, UserError
from utils.hints import NonNegativeInt, PositiveInt
from utils.monitor import Monitor
from utils.weights import read_weights

BATCHES = 20  # of training data, for batch norms' statistics after a cut and for gradients before one

KEPT = ("last_stage", "epochs", "rows", "widths")  # in a checkpoint, to go on from


class PruneTrainer(Trainer):
    """Cuts the network step by step, and trains it after each cut until it has recovered.

    A step is a stage of the run: cut, new optimizer, schedule and average, `epochs` of training, the best of them kept
    as prune/step<k>.pth. Stage 0 comes before the first cut. What a stage begins with is the best of the one before.

    Args:
        pruner: a BasePruner
        exporter: function of (checkpoint, file to write without its suffix) that exports it
        epochs: epochs of training after each cut
        last_epochs: epochs after the last cut; like the others where not given
        sparse_epochs: epochs before the first cut that make channels unimportant, if the pruner knows how to
        save_onnx: export the network at the end of each step, of each epoch or of the whole run
    """

    script = "prune.py"

    def __init__(
        self,
        *args: Any,
        pruner: BasePruner | None = None,
        exporter: Callable[[Path, Path], Any] | None = None,
        last_epochs: PositiveInt | None = None,
        sparse_epochs: NonNegativeInt = 0,
        save_onnx: Literal["step", "epoch", "end"] | None = None,
        **kwargs: Any,
    ):
        if pruner is None:
            raise UserError(
                "trainer: this is a pruning run, which prune.py begins (-c FILE -r RUN) and continues (-r RUN); "
                "train.py -c FILE -r RUN trains what it has come to"
            )
        if sparse_epochs and not pruner.sparsifies:
            raise UserError(f"trainer.sparse_epochs: {type(pruner).__name__} knows no sparse training; BNScalePruner does")
        if save_onnx and distributed.world_size() > 1:
            raise UserError("trainer.save_onnx: is for one process; export.py -r RUN exports what several have pruned")
        self.pruner, self.exporter, self.save_onnx = pruner, exporter, save_onnx
        self.last_stage = self.closed = False
        self.rows: list[dict[str, Any]] = []  # what each step came to
        self.widths: list[dict[str, int]] = []  # each layer's, after each step
        self.stage_epochs = {"sparse": sparse_epochs, "each": kwargs["epochs"], "last": last_epochs or kwargs["epochs"]}
        super().__init__(*args, **kwargs)
        self.reuse_features = False  # what a cut backbone gives changes from step to step
        self.epochs = sparse_epochs  # the last of the current stage
        self.target = (self.config.get("inspection") or {}).get("target")
        self.measurement = Measurement(self.folder / "original.onnx", self.example, pruner.threads, pruner.batch_size)
        if pruner.max_accuracy_drop is not None and self.valid_data_loader is None:
            raise UserError("pruner.args.target: max_accuracy_drop needs validation data: data_loader.args.validation_split")

    @property
    def stage(self) -> int:
        """The step whose training is in progress, or was the last; 0 before the first cut."""
        return max(0, len(self.rows) - 1)

    @property
    def folder(self) -> Path:
        """Where the run's steps and their report are."""
        folder = self.config.save_dir / "prune"
        if distributed.is_first():
            folder.mkdir(exist_ok=True)
        return folder

    @property
    def best_file(self) -> Path:
        return self.folder / f"step{self.stage}.pth"

    @property
    def scheduled_epochs(self) -> int:
        return max(1, self.stage_epochs["sparse" if self.stage == 0 else "last" if self.last_stage else "each"])

    @property
    def example(self) -> Tensor:
        """A batch of two of what the network takes."""
        return self.engine.to_device(torch.stack([self.data_loader.example] * 2))

    def train(self) -> dict[str, float]:
        log = super().train()
        if self.save_onnx == "end":
            self._export(self.config.save_dir / checkpoint.BEST, self.config.save_dir / "model")
        table = pruning_table(self.rows, self.pruner.aim)
        self.logger.info("\n".join(["", *table, f"report: {self.folder / 'report.html'}"]))
        return log

    def check(self) -> None:
        self.stage_epochs["sparse"] = self.epochs = 0  # so that a cut is tried
        self.valid_data_loader = self.valid_data_loader and list(islice(self.valid_data_loader, 1))
        self.finished()
        super().check()

    def finished(self) -> bool:
        """Here a stage that is over is closed; the run is over with the last one."""
        if not self.rows:
            self._measure_original(unwrap(self.model))
        if not self.closed and super().finished():
            self._close_stage(unwrap(self.model))
        return self.closed and self.last_stage

    def _run_epoch(self, epoch: int) -> dict[str, float]:
        log = super()._run_epoch(epoch)
        numbered = self.config.save_dir / f"checkpoint-epoch{epoch}.pth"
        if self.save_onnx == "epoch" and numbered.exists():
            self._export(numbered, self.folder / f"epoch{epoch}")
        return log

    def before_epoch(self, epoch: int) -> None:
        if self.closed:
            self._open_stage(unwrap(self.model), epoch)
        if self.stage == 0:
            self.pruner.begin_sparse(unwrap(self.model), self.example)

    def after_backward(self) -> None:
        if self.stage == 0:
            self.pruner.regularize(unwrap(self.model))

    def _open_stage(self, network: nn.Module, epoch: int) -> None:
        """Cut the best network of the stage before, and make it ready to recover."""
        if self.pruner.needs_gradients:
            add_gradients(network, self._some_batches(), self.loss, self.engine)
        original = self.rows[0] | {"onnx": self.measurement.original}
        self.last_stage = cut(self.pruner, network, self.example, self.stage + 1, original)
        if self.stage == 0:  # only now: what cannot be cut leaves no checkpoint, and is not the newest run
            checkpoint.copy(self.best_file, self.config.save_dir / checkpoint.BEST)
        self.rows.append({"step": self.stage + 1, "first_epoch": epoch})
        self.closed = False
        self.monitor = Monitor(f"{self.monitor.mode} {self.monitor.name}".strip(), self.monitor.patience)
        self.epochs = epoch - 1 + self.scheduled_epochs
        self.set_model(network)
        update_bn((self.engine.to_device(data) for data, _ in self._some_batches()), network)
        self.engine.share_buffers(network)
        before = self._accuracy(network)
        self.rows[-1] |= {f"{name}_before": value for name, value in before.items()}
        said = "" if before["accuracy"] is None else f", accuracy {before['accuracy']:.4f} before it recovers"
        left = self.measurement.size(network)["macs"] / self.rows[0]["macs"]
        self.logger.info(f"step {self.stage}: {left:.1%} of the original's multiply-adds{said}")

    def _close_stage(self, network: nn.Module) -> None:
        """Go back to the stage's best, measure it, and decide whether the run is over."""
        if not self.monitor.best_epoch and self.stage:
            checkpoint.copy(self.config.save_dir / f"checkpoint-epoch{self.epoch - 1}.pth", self.best_file)
        if distributed.is_first() and self.best_file.exists():
            network.load_state_dict(read_weights(self.best_file))
        distributed.take_from_first(network.state_dict().values())
        self.closed = True
        if self.stage == 0:
            checkpoint.save(self.state_dict() | {"epoch": self.epoch - 1}, self.best_file)
        else:
            self._measure(network)
        if not self._is_good():
            self.last_stage = True
        elif self.stage:
            checkpoint.copy(self.best_file, self.config.save_dir / checkpoint.BEST)
        if self.save_onnx == "step" and self.stage:
            self._export(self.best_file, self.best_file.with_suffix(""))
        self._report()

    def _export(self, file: Path, path: Path) -> None:
        try:
            self.exporter(file, path)
        except RunError as error:  # no reason to lose what the run has come to
            self.logger.warning(f"{error}")

    def _measure_original(self, network: nn.Module) -> None:
        try:
            distributed.done_by_first(partial(self.measurement.keep_original, network))
        except UserError as error:  # the aim may do without
            self.logger.warning(f"{error}; speed is not measured")
        self.rows = [{"step": 0, "first_epoch": 1, "accuracy_before": None, "recall_before": None}]
        self._measure(network)
        self.rows[0]["latency"] = self.rows[0]["latency"] and 1.0  # by definition

    def _measure(self, network: nn.Module) -> None:
        """Note what the stage has come to."""
        row = self.rows[-1]
        row |= {"epochs": self.epoch - row["first_epoch"], "checkpoint": f"prune/{self.best_file.name}"}
        row |= self._accuracy(network) | self.measurement.size(network)
        row |= distributed.done_by_first(partial(self.measurement.speed, network))
        self.widths = [*self.widths[: self.stage], widths_of(network)]

    def _is_good(self) -> bool:
        """Whether the newest step may be kept."""
        drop = self.pruner.max_accuracy_drop
        if drop is None or self.stage == 0:
            return True
        base, now = self.rows[0]["accuracy"], self.rows[-1]["accuracy"]
        if base is None:
            raise UserError("pruner.args.target: max_accuracy_drop needs a classifier")
        if now < base - drop:
            self.logger.info(f"step {self.stage}: accuracy {now:.4f} is more than {drop:g} below {base:.4f}; it is not kept")
        return now >= base - drop

    def _report(self) -> None:
        if distributed.is_first():
            name, aim = self.config["name"], self.pruner.aim
            report_pruning(self.folder, name, self.rows, self.widths, aim, self.writer, self.target, self.last_stage)

    def _accuracy(self, network: nn.Module) -> dict[str, float | None]:
        batches, classes = self.valid_data_loader, self.data_loader.classes
        return accuracy_of(network, batches, self.criterion, self.engine, classes, self.target)

    def _some_batches(self) -> Any:
        return islice(self.data_loader.batches((self.epoch - 1) * self.len_epoch), min(BATCHES, self.len_epoch))

    def state_dict(self) -> dict:
        state = super().state_dict()
        state["trainer"]["pruning"] = {"stage": self.stage, "pruner": self.pruner.state_dict()}
        state["trainer"]["pruning"] |= {name: getattr(self, name) for name in KEPT}
        return state

    def load_state_dict(self, state: dict) -> None:
        pruning = state["trainer"].get("pruning")
        if pruning is None:
            raise CheckpointError("it is no pruning run; -r PATH -c FILE begins one from its weights")
        vars(self).update({name: pruning[name] for name in KEPT}, closed=False)
        self.pruner.load_state_dict(pruning["pruner"])
        super().load_state_dict(state)

    def _say_if_complete(self) -> None:
        """A stage that is complete is no reason to stop."""
