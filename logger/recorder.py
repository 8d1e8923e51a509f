import logging
from pathlib import Path
from typing import Any

from torch import nn

from logger.metrics_csv import MetricsFile
from logger.visualization import TensorboardWriter
from utils import checkpoint


class Recorder:
    """Shows what a run logs, and keeps it: screen and info.log, metrics.csv, TensorBoard.

    Args:
        log_dir: the run's log folder
        tensorboard: False leaves TensorBoard out
        keep: False writes no files at all, as the processes beside a run's first
    """

    def __init__(self, log_dir: Path, tensorboard: bool = True, keep: bool = True):
        self.logger = logging.getLogger("trainer")
        self.writer = TensorboardWriter(log_dir, tensorboard and keep)
        self.metrics = MetricsFile(Path(log_dir) / "metrics.csv", keep)
        self._training_seconds = 0.0

    def begin(self, config: Any, logged: list[str]) -> None:
        """A new run starts; `logged` are the names it will log."""
        self.logger.info(f"run {config.save_dir}")
        self.writer.add_hyperparameters(_flat(config.config), [_tag(name) for name in logged])

    def resume(self, epoch: int, step: int) -> None:
        """An old run goes on in `epoch`, having trained `step` batches: forget what it recorded later."""
        self.metrics.resume(epoch - 1)
        self.writer.purge_from(step + 1)

    def epoch(self, epoch: int, epochs: int, len_epoch: int, log: dict[str, float], best: bool, model: nn.Module) -> None:
        """An epoch is done: a line, a row, a point on each curve, and the parameters as histograms."""
        values = "  ".join(f"{name} {value:,.0f}" if value >= 1000 else f"{name} {value:.4g}" for name, value in log.items())
        self.logger.info(f"epoch {epoch:{len(str(epochs))}}/{epochs}  {values}{'  * best' if best else ''}")
        self.metrics.add({"epoch": epoch, "step": epoch * len_epoch, **log})
        for name, value in log.items():
            if name != "loss":  # loss/train has been written all along
                tag, _, mode = _tag(name).rpartition("/")
                self.writer.set_step(epoch * len_epoch, mode)
                self.writer.add_scalar(tag, value)
        self._training_seconds += log["seconds"]
        self.writer.set_step(epoch * len_epoch)
        self.writer.add_parameters(model, self._training_seconds)

    def stopped(self, config: Any, where: str, script: str) -> None:
        """A signal ended the run; its state is saved, and `script` continues it."""
        self.logger.warning(f"stopped {where}; everything is saved. Go on with:\n  python {script} -r {config.save_dir}")
        self.writer.close()

    def end(self, config: Any, monitor: Any, seconds: float) -> None:
        """The run is complete: say what came of it, where it is, and what can be done next."""
        self.writer.close()
        best = config.save_dir / checkpoint.BEST
        model = best if best.exists() else next(checkpoint.of_run(config.save_dir), config.save_dir)
        lines = [""]
        if monitor.best is not None:
            lines.append(f"best {monitor.name} {monitor.best:.4f} in epoch {monitor.best_epoch}; {seconds:.0f} s")
        if monitor.exhausted:
            lines.append(f"stopped early, after {monitor.waited} epochs without a better one")
        lines += [f"  model  {model}", f"  log    {config.log_dir}", "next:", f"  python test.py -r {config.save_dir}"]
        if self.writer.enabled:
            lines.append(f"  tensorboard --logdir {config.log_dir.parent.parent}")
        self.logger.info("\n".join(lines))


def _tag(name: str) -> str:
    """val_accuracy -> accuracy/valid, accuracy -> accuracy/train."""
    return f"{name.removeprefix('val_')}/valid" if name.startswith("val_") else f"{name}/train"


def _flat(config: Any, path: str = "") -> dict[str, Any]:
    """{"optimizer": {"args": {"lr": 0.1}}} -> {"optimizer.args.lr": 0.1}."""
    if not isinstance(config, dict):
        return {path: config}
    parts = ((f"{path}.{key}".lstrip("."), value) for key, value in config.items() if key not in ("$schema", "versions"))
    return {k: v for key, value in parts for k, v in _flat(value, key).items()}
