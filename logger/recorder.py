"""Brings together everything that records a run."""

import itertools
import logging
import os
import re
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from base.monitor import Monitor
from logger.base_tracker import BaseTracker, tell
from logger.files import flat
from logger.metrics_csv import MetricsFile
from logger.visualization import TensorboardWriter
from utils import checkpoint
from utils.files import ROOT, shell_command, write_json
from utils.run_folder import RUN_FILE, read_run_file

Log = dict[str, float]  # what an epoch measured
COLUMNS = 80  # of a line on the screen
LAST = ("lr", "seconds", "samples_per_second")  # shown after the rest
OFFER = re.compile(r"python \S+\.py -r (?=saved/models/<name>/<run>$)")


class Recorder:
    """Shows and records what a run logs: console and info.log, metrics.csv, TensorBoard, trackers;
    and in run.json what it is.

    Args:
        log_dir: the run's log folder
        tensorboard: False turns TensorBoard off
        keep: False writes no files at all; for all processes of a run but the main one
        trackers: further places to record it
    """

    def __init__(
        self,
        log_dir: Path,
        tensorboard: bool = True,
        keep: bool = True,
        trackers: Iterable[BaseTracker] = (),
    ):
        self.log_dir, self.keep = log_dir, keep
        self.trackers = [*trackers]
        self.logger = logging.getLogger("trainer")
        self.writer = TensorboardWriter(log_dir, tensorboard and keep)
        self.metrics = MetricsFile(log_dir / "metrics.csv", keep)
        self._training_seconds = 0.0
        self._about: dict = {}

    def begin(self, run: Path, config: dict, logged: list[str]) -> None:
        """A new run starts in the folder `run`; it will log the names in `logged`."""
        self.logger.info(f"run {run}")
        self.writer.add_hyperparameters(flat(config), [_tag(name) for name in logged])

    def started(self, run: Path, config: dict, about: dict, parent: Path | None) -> None:
        """A run begins or continues in the folder `run`.

        Args:
            run: the run's folder
            config: the configuration as used
            about: plain data for run.json
            parent: the folder of the run whose weights it starts from
        """
        path = parent and os.path.relpath(parent, run.absolute()).replace(os.sep, "/")
        before = read_run_file(run)
        kept = {"parent": path or before.get("parent"), "began": before.get("began", time.time())}
        self._about = about | kept
        self._note(run, "training")
        self._tell("begin", run, config, parent)

    def _note(self, run: Path, state: str) -> None:
        """Write run.json: "training", "stopped" or "finished"."""
        self._about["state"] = state
        if self.keep:
            write_json(run / RUN_FILE, self._about)

    def _tell(self, method: str, *values: object) -> None:
        if self.keep:
            tell(self.trackers, method, *values)

    def read_history(self, epoch: int) -> list[Log]:
        """What each epoch up to this one logged, by metrics.csv."""
        return [row for row in self.metrics.read() if row["epoch"] <= epoch]

    def resume(self, history: list[Log], step: int) -> None:
        """A run continues after these epochs and `step` trained batches: drop later records."""
        self.metrics.write(history)
        self.writer.purge_from(step + 1)

    def epoch(self, epochs: int, history: list[Log], best: bool, model: nn.Module) -> None:
        """An epoch is done, the last in `history`: show it, a row, a point on each curve,
        histograms of parameters.
        """
        log = dict(history[-1])
        epoch, step = log.pop("epoch"), log.pop("step")
        head = f"epoch {epoch:{len(str(epochs))}}/{epochs}  "
        self.logger.info(head + _values(log, best, indent=len(head)))
        self.metrics.write(history)
        for name, value in log.items():
            if name != "loss":  # the trainer writes loss/train after each batch
                tag, _, mode = _tag(name).rpartition("/")
                self.writer.set_step(step, mode)
                self.writer.add_scalar(tag, value)
        self._training_seconds += log["seconds"]
        self._tell("log", {"epoch": epoch, **log}, step)
        self.writer.set_step(step)
        self.writer.add_parameters(model, self._training_seconds)
        self.writer.flush()

    def stopped(self, run: Path, where: str, script: str) -> None:
        """A signal ended the run; its state is saved, and `script` continues it."""
        command = shell_command("python", script, "-r", run)
        self.logger.warning(f"stopped {where}; everything is saved. Continue with:\n  {command}")
        self._close(run, "stopped")

    def end(self, run: Path, monitor: Monitor, seconds: float) -> None:
        """The run is complete: show its result, where its files are, and what to do next."""
        self._close(run, "finished")
        candidates = [run / checkpoint.BEST, *checkpoint.numbered_checkpoints(run), run]
        lines = [""]
        if monitor.best is not None:
            best = f"best {monitor.name} {monitor.best:.4f} in epoch {monitor.best_epoch}"
            lines.append(f"{best}; {seconds:.0f} s")
        if monitor.exhausted:
            lines.append(f"stopped early, after {monitor.waited} epochs without a better one")
        lines.append(f"  model  {next(path for path in candidates if path.exists())}")
        lines += [f"  log    {self.log_dir}", "next:", *(f"  {c}" for c in next_commands(run))]
        if self.writer.enabled:
            command = shell_command("tensorboard", "--logdir", self.log_dir.parent.parent)
            lines.append(f"  {command}")
        self.logger.info("\n".join(lines))

    def _close(self, run: Path, state: str) -> None:
        self.writer.close()
        self._note(run, state)
        self._tell("end", state)


def next_commands(run: Path) -> list[str]:
    """The commands that the project's scripts offer for a trained network, with its folder put in.

    A script offers one whose first line, its docstring's, ends with
    `python <script> -r saved/models/<name>/<run>`.
    """
    scripts = sorted(ROOT.glob("*.py"), reverse=True)  # this happens to be the usual order of work
    first_lines = (path.read_text("utf-8", "replace").partition("\n")[0] for path in scripts)
    offers = (OFFER.search(line) for line in first_lines)
    return [shell_command(*offer[0].split(), run) for offer in offers if offer]


def _values(log: Log, best: bool, indent: int) -> str:
    """An epoch's numbers in a line; if that is too long training, validation, the rest in lines."""
    shown = {k: f"{k} {v:,.0f}" if v >= 1000 else f"{k} {v:.4g}" for k, v in log.items()}
    rest = [shown.pop(name) for name in LAST if name in shown] + ["* best"] * best
    validation = [shown.pop(name) for name in log if name.startswith("val_")]
    groups = [[*shown.values()], validation, rest]
    line = "  ".join(itertools.chain(*groups))
    if indent + len(line) <= COLUMNS:
        return line
    width = COLUMNS - indent
    wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    lines = []
    for group in groups:  # a no-break space keeps a name, also one with spaces, and its value
        text = "  ".join(value.replace(" ", "\xa0") for value in group)
        lines += wrapper.wrap(text)
    return f"\n{' ' * indent}".join(lines).replace("\xa0", " ")


def _tag(name: str) -> str:
    """val_accuracy -> accuracy/valid, accuracy -> accuracy/train."""
    return f"{name.removeprefix('val_')}/valid" if name.startswith("val_") else f"{name}/train"
