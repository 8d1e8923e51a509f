import statistics
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from base.monitor import Monitor
from exporter.latency import ratio, side_by_side
from exporter.onnx_exporter import onnx_bytes
from exporter.signature import build_signature, leaves
from model.batch_norm import batch_norms
from model.structure import get_structure, resize
from model.summary import multiply_adds
from model.weights import read_weights
from pruner.base_pruner import LIMITS, BasePruner, Original
from pruner.graph import widths
from pruner.report import Row, keeps, pruning_table, report_pruning
from tester.predictions import Predictions
from trainer.decisions import choose_sure
from trainer.evaluate import evaluate
from trainer.optimization import build_optimizer
from trainer.trainer import Trainer
from utils import checkpoint
from utils.config.hints import NonNegativeInt, PositiveInt
from utils.contents import find_fault
from utils.engine import distributed
from utils.engine.engine import Call, Running, unwrap
from utils.errors import CheckpointError, Interrupted, RunError, UserError, in_words
from utils.files import named

T = TypeVar("T")
CUT = "step", "channels", "macs", "params", "accuracy", "recall"  # of a row, for the origin
MEASURED = "accuracy", "recall", "samples", "escape", "false"  # on the validation data
# attributes kept in checkpoints
STATE = {"last_stage": bool, "epochs": int, "rows": list[dict], "widths": list[dict[str, int]]}


class PruneTrainer(Trainer):
    """Prunes the network step by step, and trains it after each cut until it has recovered.

    Each step is a stage of the run: cut, new optimizer, schedule and average, then `epochs` of
    training; the best network is kept as prune/step<k>.pth, and the next stage starts from it.
    Stage 0 comes before the first cut.

    Args:
        pruner: chooses and removes channels
        exporter: exports a checkpoint, a function of (its path, path to write without suffix)
        epochs: epochs of training after each cut
        last_epochs: epochs after the last cut; as many as after the others by default
        sparse_epochs: epochs before the first cut that make channels unimportant
        save_onnx: export the network after each step, each epoch or at the end of the run
    """

    script = "prune.py"

    not_kept = (
        *Trainer.not_kept,
        "pruner", "exporter", "save_onnx", "last_stage", "closed", "rows", "widths",
        "sparse_epochs", "last_epochs", "step_epochs", "target", "folder", "original", "example",
    )  # fmt: skip

    def __init__(
        self,
        *args,
        pruner: BasePruner | None = None,
        exporter: Callable[[Path, Path], Path] | None = None,
        last_epochs: PositiveInt | None = None,
        sparse_epochs: NonNegativeInt = 0,
        save_onnx: Literal["step", "epoch", "end"] | None = None,
        **kwargs,
    ):
        if pruner is None:
            raise UserError(
                "trainer: this is a pruning run: prune.py -r RUN resumes it, "
                "train.py -c FILE -r RUN trains its pruned network"
            )
        if sparse_epochs and not pruner.sparsifies:
            name = type(pruner).__name__
            raise UserError(f"trainer.sparse_epochs: {name} does not support it, use BNScalePruner")
        if save_onnx and distributed.world_size() > 1:
            raise UserError("trainer.save_onnx: works with one process only; use export.py -r RUN")
        self.pruner, self.exporter, self.save_onnx = pruner, exporter, save_onnx
        self.last_stage = self.closed = False
        self.rows: list[Row] = []  # results of each step
        self.widths: list[dict[str, int]] = []  # of the layers, after each step
        self.sparse_epochs, self.last_epochs = sparse_epochs, last_epochs or kwargs["epochs"]
        self.step_epochs = kwargs["epochs"]
        super().__init__(*args, **kwargs)
        self.reuse_features = False  # the features change with each cut
        self.epochs = sparse_epochs  # the last one of the current stage
        self.target = self.config.option("inspection", "target")
        self.folder = self.config.save_dir / "prune"
        self.task.original = self.folder / "step0.pth"
        self.original = self.folder / "original.onnx"  # missing if it cannot be exported
        if distributed.is_main():
            self.folder.mkdir(exist_ok=True)

    @property
    def stage(self) -> int:
        """The step whose training is in progress, or was the last; 0 before the first cut."""
        return max(0, len(self.rows) - 1)

    @property
    def best_file(self) -> Path:
        return self.folder / f"step{self.stage}.pth"

    @property
    def scheduled_epochs(self) -> int:
        if self.stage == 0:
            return max(1, self.sparse_epochs)
        return self.last_epochs if self.last_stage else self.step_epochs

    def rehearse(self) -> Call:
        """Also keep a batch of two inputs. Raises UserError if the network takes several."""
        call = super().rehearse()
        names = build_signature(unwrap(self.model), call, None)["inputs"]
        if len(names) != 1:
            inputs = f"{len(names)} inputs ({', '.join(names)})"
            raise UserError(f"pruner: this network takes {inputs}; pruning needs one")
        self.example: Tensor = next(tensor for _, tensor in leaves(call))[[0, 0]]
        return call

    def train(self) -> dict[str, float]:
        log = super().train()
        if self.save_onnx == "end":
            self._export(self.config.save_dir / checkpoint.BEST, self.config.save_dir / "model")
        table = pruning_table(self.rows, self.pruner.aim)
        self.logger.info("\n".join(["", *table, f"report: {self.folder / 'report.html'}"]))
        return log

    def check(self) -> None:
        self.valid_data_loader = self.valid_data_loader and list(islice(self.valid_data_loader, 1))
        if not self.config.continued:
            self.sparse_epochs = self.epochs = 0  # so that a cut is tried
            self.rehearse()
            self.finished()
        super().check()

    def finished(self) -> bool:
        """Closes a stage that is over; the run is over with the last one."""
        if not self.rows:
            self._start(unwrap(self.model))
        if not self.closed and super().finished():
            self._close_stage(unwrap(self.model))
        return self.closed and self.last_stage

    def _run_epoch(self, epoch: int) -> dict[str, float]:
        log = super()._run_epoch(epoch)
        numbered = self.config.save_dir / f"checkpoint-epoch{epoch}.pth"
        is_saved = numbered.exists() and numbered != self.unfinished
        if self.save_onnx == "epoch" and is_saved:
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
        """Prune the best network of the stage before, and prepare it for training."""
        step = self.stage + 1
        self.last_stage = self._prune(network, step)
        if step == 1:  # not earlier: a run that cannot prune leaves no checkpoint to resume
            checkpoint.copy(self.best_file, self.config.save_dir / checkpoint.BEST)
        self.rows.append({"step": step, "first_epoch": epoch, **self._size(network)})
        before = self.monitor
        self.closed, self.monitor = False, Monitor(before.rule, before.patience, before.latest)
        self.epochs = epoch - 1 + self.scheduled_epochs
        self.set_model(network, build_optimizer(self.config, self.engine, network, task=self.task))
        self.recompute_statistics(network, batch_norms(network), epoch)
        self.engine.broadcast_buffers(network)
        before = self._accuracy(network)
        self.rows[-1] |= {f"{name}_before": value for name, value in before.items()}
        left, accuracy = self.rows[-1]["macs"] / self.rows[0]["macs"], before["accuracy"]
        note = "" if accuracy is None else f", accuracy {accuracy:.4f} before training"
        self.logger.info(f"step {step}: {left:.1%} of the original's multiply-adds{note}")

    def _prune(self, network: nn.Module, step: int) -> bool:
        """Prune the network on all processes. Returns True if this was the last step."""

        def prune(network: nn.Module, example: Tensor, original: Original) -> tuple[bool, dict]:
            return self.pruner.prune(network, example, step, original), get_structure(network)

        last, structure = self._ask_pruner(network, prune)
        if not distributed.is_main():
            resize(network, structure)
        distributed.broadcast_tensors(network.state_dict().values())
        return last

    def _ask_pruner(self, network: nn.Module, ask: Callable[..., T]) -> T:
        """The main process's answer, which may depend on measured times, or on gradients."""
        network.eval()
        network.zero_grad(set_to_none=True)
        if self.pruner.needs_gradients:
            running = Running(self.engine, network)
            with self.engine.in_float32():
                for batch in self.first_batches(self.epoch):
                    self.task.step(running, batch).loss.backward()
            for parameter in network.parameters():
                if parameter.grad is not None:
                    parameter.grad = distributed.all_reduce_sum(parameter.grad)
        original = self.rows[0] | {"onnx": self.original}
        answer = distributed.run_on_main(lambda: ask(network, self.example, original))
        network.zero_grad(set_to_none=True)
        return answer

    def _close_stage(self, network: nn.Module) -> None:
        """Return to the stage's best network, measure it, and decide whether the run is over."""
        if not self.monitor.best_epoch and self.stage:
            newest = self.config.save_dir / f"checkpoint-epoch{self.epoch - 1}.pth"
            checkpoint.copy(newest, self.best_file)
        if distributed.is_main() and self.best_file.exists():
            checkpoint.load_into(network, read_weights(self.best_file), str(self.best_file))
        distributed.broadcast_tensors(network.state_dict().values())
        self.closed = True
        if self.stage == 0:
            checkpoint.save(self.state_dict() | {"epoch": self.epoch - 1}, self.best_file)
        else:
            self._measure(network)
            if self._is_good():
                checkpoint.copy(self.best_file, self.config.save_dir / checkpoint.BEST)
            else:
                self.last_stage = True
            if self.save_onnx == "step":
                self._export(self.best_file, self.best_file.with_suffix(""))
        if distributed.is_main():
            name, results = self.config["name"], (self.rows, self.widths)
            aim, ends = self.pruner.aim, self.last_stage
            report_pruning(self.folder, name, *results, aim, self.writer, self.target, ends)

    def _export(self, file: Path, path: Path) -> None:
        try:
            self.exporter(file, path)
        except Interrupted:
            raise
        except Exception as error:  # the pruned network is worth more than its export
            known = isinstance(error, UserError | RunError)
            self.logger.warning(f"{error if known else in_words(error)}")

    def _start(self, network: nn.Module) -> None:
        """Measure the original, and plan the steps: what cannot be reached is refused here."""
        example = self.example[:1]
        try:
            with named(self.original):
                distributed.run_on_main(
                    lambda: self.original.write_bytes(onnx_bytes(network, example))
                )
        except UserError as error:  # the aim may not need it
            self.logger.warning(f"{error}; speed is not measured")
        self.rows = [{"step": 0, "first_epoch": 1, "accuracy_before": None, "recall_before": None}]
        self._measure(network)
        self.rows[0]["latency"] = self.rows[0]["latency"] and 1.0  # by definition
        name = next(iter(self.pruner.limit), None)
        if name and self.rows[0]["accuracy"] is None:
            raise UserError(
                f"pruner.args.target: {name} needs a classifier, and validation data: "
                "data_loader.args.validation_split"
            )
        if name == "max_escape_drop" and self.rows[0]["escape"] is None:
            raise UserError(
                f'pruner.args.target: {name} needs a section "inspection" with the target, and '
                "validation samples of it"
            )
        if lines := self._ask_pruner(network, self.pruner.plan_steps):
            self.logger.info("\n".join(lines))

    def _measure(self, network: nn.Module) -> None:
        """Note the results of the current stage."""
        row = self.rows[-1]
        row |= {
            **self._size(network),
            "epochs": self.epoch - row["first_epoch"],
            "checkpoint": f"prune/{self.best_file.name}",
        }
        row |= self._accuracy(network) | distributed.run_on_main(lambda: self._speed(network))
        self.widths = [*self.widths[: self.stage], widths(network)]

    def _size(self, network: nn.Module) -> dict[str, int]:
        return {
            "channels": sum(widths(network).values()),
            "macs": multiply_adds(network, self.example)[0][""],
            "params": sum(parameter.numel() for parameter in network.parameters()),
        }

    def _speed(self, network: nn.Module) -> dict[str, float | None]:
        """Size and latency of the ONNX file, that relative to the original's, latency in torch."""
        if not self.original.exists():
            return dict.fromkeys(("size_mb", "latency_ms", "latency", "torch_ms"))
        batch = self.example[:1].repeat_interleave(self.pruner.batch_size, dim=0)
        file = onnx_bytes(network.eval(), self.example[:1])
        files = {"original": self.original, "pruned": file}

        def run_in_torch() -> None:
            network(batch)
            self.engine.synchronize()

        with torch.inference_mode():
            times = side_by_side(files, batch, self.pruner.threads, torch=run_in_torch)
        return {
            "size_mb": len(file) / 1e6,
            "latency_ms": statistics.median(times["pruned"]),
            "latency": ratio(times, "pruned", "original"),
            "torch_ms": statistics.median(times["torch"]),
        }

    def _accuracy(self, network: nn.Module) -> dict[str, float | None]:
        """Accuracy, and recall of the target class, or without one of the class with the lowest.

        None without validation data, or if the network is not a classifier.
        """
        results: dict[str, float | None] = dict.fromkeys(MEASURED)
        predictions, batches = Predictions(self.data_loader.classes), self.valid_data_loader
        predictions.is_classification = self.task.classifies
        if batches is not None:
            evaluate(network, batches, self.task, {}, self.engine, predictions.add)
        if batches is None or not predictions.is_classification:
            return results
        own = predictions.probabilities, predictions.targets
        gathered = zip(*distributed.all_gather(own), strict=True)
        probabilities, targets = (np.concatenate(parts) for parts in gathered)
        right = probabilities.argmax(1) == targets
        numbers = {name: n for n, name in enumerate(predictions.classes) if n in targets}
        recalls = {name: float(right[targets == n].mean()) for name, n in numbers.items()}
        results["accuracy"], results["samples"] = float(right.mean()), len(targets)
        results["recall"] = recalls.get(self.target) if self.target else min(recalls.values())
        if self.target in recalls:
            results |= self._escape(probabilities, targets, numbers[self.target])
        return results

    def _escape(
        self, probabilities: np.ndarray, targets: np.ndarray, number: int
    ) -> dict[str, float | int]:
        """The share of samples of the target class `number` that are missed when no more others are
        called target than by the original: by its threshold, or where the likeliest class decides.
        """
        probability, is_target = probabilities[:, number], targets == number
        false = self.rows[0].get("false")
        if false is None:
            called, resume = probabilities.argmax(1) == number, self.config.resume
            stored = resume and checkpoint.load(resume).get("inspection")
            if stored and stored["target"] == self.target:
                called = probability >= stored["threshold"]
            false = int(called[~is_target].sum())
        threshold = choose_sure(probability, is_target, 0.0, false)
        return {"escape": float((probability[is_target] < threshold).mean()), "false": false}

    def _is_good(self) -> bool:
        """Whether the newest step may be kept."""
        limit = self.pruner.limit
        if not limit or keeps(self.rows[-1], self.rows[0], limit):
            return True
        [(name, drop)] = limit.items()
        column = LIMITS[name]
        before, now = self.rows[0][column], self.rows[-1][column]
        lost = f"{column} {now:.4f} is more than {drop:g} worse than {before:.4f}"
        self.logger.info(f"step {self.stage}: {lost}; it is not kept")
        return False

    def figures(self) -> dict[str, Any]:
        cuts = [{key: row[key] for key in CUT if row.get(key) is not None} for row in self.rows]
        return super().figures() | {"cuts": cuts}

    def state_dict(self) -> dict:
        state = super().state_dict()
        pruning = {name: getattr(self, name) for name in ("stage", *STATE)}
        state["trainer"]["pruning"] = pruning | {"pruner": self.pruner.state_dict()}
        return state

    def load_state_dict(self, state: dict) -> None:
        pruning = state["trainer"].get("pruning")
        if pruning is None:
            raise CheckpointError("it is not of a pruning run; -r PATH -c FILE starts one from it")
        if fault := find_fault(pruning, STATE):
            raise CheckpointError(f"trainer.pruning.{fault}")
        vars(self).update({name: pruning[name] for name in STATE}, closed=False)
        self.pruner.load_state_dict(pruning["pruner"])
        super().load_state_dict(state)

    def _warn_if_complete(self) -> None:
        """Does nothing: a complete stage does not end the run."""
