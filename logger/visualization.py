"""Writes TensorBoard's event files."""

import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

HISTOGRAM_SHARE = 0.02  # of the training time, at most, is spent on histograms of parameters
HISTOGRAM_BINS = 64
HISTOGRAM_SAMPLE = 100_000


class TensorboardWriter:
    """TensorBoard's writer, which knows the current step and whether it is training or validation.

    `add_scalar("loss", value)` is shown as loss/train at the step last set by `set_step`. The
    other `add_...` methods of torch.utils.tensorboard.SummaryWriter are there, too, each without
    the step.

    Args:
        log_dir: where the event files go
        enabled: False makes every method do nothing
    """

    without_mode = "add_histogram", "add_histogram_raw", "add_embedding", "add_text", "add_hparams"

    def __init__(self, log_dir: Path, enabled: bool = True):
        self.log_dir, self.enabled = log_dir, enabled
        self.step, self.mode = 0, "train"
        self._writer: SummaryWriter | None = None
        self._purge_step: int | None = None
        self._hyperparameters: tuple[dict, dict] | None = None
        self._histogram_seconds = 0.0

    def set_step(self, step: int, mode: str = "train") -> None:
        """What is added next belongs to this step (batches trained) of "train" or "valid"."""
        self.step, self.mode = step, mode

    def purge_from(self, step: int) -> None:
        """Let TensorBoard drop what an interrupted run wrote from `step` on. Call it first."""
        self._purge_step = step

    def __getattr__(self, name: str) -> Callable[..., None]:
        if not name.startswith("add_"):
            raise AttributeError(f"TensorboardWriter has no {name}")

        def add(tag: object, /, *data: object, **options: object) -> None:
            if not self.enabled:
                return
            with self._optional():
                method = getattr(self._open(), name)
                if "global_step" in inspect.signature(method).parameters:
                    options["global_step"] = self.step
                    tag = tag if name in self.without_mode else f"{tag}/{self.mode}"
                method(tag, *data, **options)

        return add

    @contextmanager
    def _optional(self) -> Iterator[None]:
        """If these files cannot be written (a full disk), the run continues without them."""
        try:
            yield
        except OSError as error:
            self.enabled, reason = False, error.strerror or error
            text = f"no more TensorBoard files in {self.log_dir}: {reason}"
            logging.getLogger("trainer").warning(text)

    def add_parameters(self, model: nn.Module, training_seconds: float) -> None:
        """A histogram of each parameter; skipped while earlier ones took over 2 % of training time.

        Large parameters are sampled, so that neither time nor file size grows with the network.
        """
        if not self.enabled or self._histogram_seconds > HISTOGRAM_SHARE * training_seconds:
            return
        start_time = time.perf_counter()
        for name, parameter in model.named_parameters():
            stride = max(1, -(-parameter.numel() // HISTOGRAM_SAMPLE))
            values = parameter.detach().flatten()[::stride].float().cpu().numpy()
            values = values[np.isfinite(values)]
            if values.size:
                self.add_histogram(f"parameters/{name}", values, bins=HISTOGRAM_BINS)
        self._histogram_seconds += time.perf_counter() - start_time

    def add_hyperparameters(self, hyperparameters: dict[str, object], metrics: list[str]) -> None:
        """What TensorBoard's HPARAMS page compares runs by; `metrics` are the tags they log.

        Written with whatever is added next, so that a run that fails before leaves no file.
        """
        plain = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in hyperparameters.items()
        }
        self._hyperparameters = plain, dict.fromkeys(metrics, 0.0)

    def add_input_images(self, data: torch.Tensor, count: int = 16) -> None:
        """The first images of a batch (N, 1 or 3, H, W), scaled to the range that can be shown."""
        if not self.enabled or data.ndim != 4 or data.shape[1] not in (1, 3):
            return
        images = data[:count].detach().float().cpu()
        low, high = images.amin(), images.amax()
        self.add_images("input", (images - low) / (high - low).clamp(min=1e-12))

    def flush(self) -> None:
        """Write what was added so far."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Write everything; a later call opens a new file."""
        if self._writer is not None:
            with self._optional():
                self._writer.close()

    def _open(self) -> "SummaryWriter":
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import
            from torch.utils.tensorboard.summary import hparams

            threading.excepthook = _excepthook
            self._writer = SummaryWriter(
                str(self.log_dir), purge_step=self._purge_step, max_queue=100, flush_secs=30
            )
            for summary in hparams(*self._hyperparameters) if self._hyperparameters else ():
                self._writer.file_writer.add_summary(summary)
            self._hyperparameters = None
        return self._writer


def _excepthook(arguments: threading.ExceptHookArgs) -> None:
    # the writer's thread passes its errors on to `add_...`
    if not type(arguments.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(arguments)
