import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

# Writing histograms may take this share of the training time, and no more, however large the network.
HISTOGRAM_SHARE = 0.02
HISTOGRAM_BINS = 64
HISTOGRAM_SAMPLE = 100_000


class TensorboardWriter:
    """TensorBoard's writer, which knows the current step and whether it is training or validation.

    `add_scalar("loss", value)` is shown as loss/train at the step that `set_step` was last told. Also
    `add_scalars`, `add_image`, `add_images`, `add_figure`, `add_audio`, `add_text`, `add_histogram`,
    `add_embedding`, each like torch.utils.tensorboard.SummaryWriter's without the step.

    Args:
        log_dir: where the event files go
        enabled: False makes every method do nothing
    """

    with_mode = frozenset(("add_scalar", "add_scalars", "add_image", "add_images", "add_figure", "add_audio"))
    without_mode = frozenset(("add_histogram", "add_embedding", "add_text"))

    def __init__(self, log_dir: Path, enabled: bool = True):
        self.log_dir, self.enabled = Path(log_dir), enabled
        self.step, self.mode = 0, "train"
        self._writer: Any = None
        self._purge_step: int | None = None
        self._histogram_seconds = 0.0

    def set_step(self, step: int, mode: str = "train") -> None:
        """What follows belongs to this step (batches trained so far) of "train" or "valid"."""
        self.step, self.mode = step, mode

    def purge_from(self, step: int) -> None:
        """TensorBoard is to forget what an interrupted run wrote at `step` and later. Before anything is written."""
        self._purge_step = step

    def __getattr__(self, name: str) -> Any:
        if name not in self.with_mode | self.without_mode:
            raise AttributeError(f"TensorboardWriter has no {name}")

        def add(tag: str, *data: Any, **options: Any) -> None:
            if self.enabled:
                full = f"{tag}/{self.mode}" if name in self.with_mode else tag
                getattr(self._open(), name)(full, *data, global_step=self.step, **options)

        return add

    def add_parameters(self, model: nn.Module, training_seconds: float) -> None:
        """A histogram of each parameter, left out while the earlier ones took over 2 % of the time spent in training.

        Large parameters are sampled, so that neither time nor file grows with the network.
        """
        if not self.enabled or self._histogram_seconds > HISTOGRAM_SHARE * training_seconds:
            return
        begun = time.perf_counter()
        for name, parameter in model.named_parameters():
            values = parameter.detach().flatten()
            values = (
                values[:: -(-values.numel() // HISTOGRAM_SAMPLE)].float().cpu().numpy() if values.numel() else values.numpy()
            )
            values = values[np.isfinite(values)]
            if values.size:
                self._add_counts(f"parameters/{name}", values.astype(np.float64))
        self._histogram_seconds += time.perf_counter() - begun

    def add_hyperparameters(self, hyperparameters: dict[str, Any], metrics: list[str]) -> None:
        """What TensorBoard's HPARAMS page compares runs by; `metrics` are tags that will be written."""
        if not self.enabled:
            return
        from torch.utils.tensorboard.summary import hparams

        plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in hyperparameters.items()}
        for summary in hparams(plain, dict.fromkeys(metrics, 0.0)):
            self._open().file_writer.add_summary(summary)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add_counts(self, name: str, values: np.ndarray) -> None:
        counts, edges = np.histogram(values, bins=HISTOGRAM_BINS)
        self._open().add_histogram_raw(
            name,
            min=values.min(),
            max=values.max(),
            num=len(values),
            sum=values.sum(),
            sum_squares=np.square(values).sum(),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=self.step,
        )

    def _open(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            self._writer = SummaryWriter(str(self.log_dir), purge_step=self._purge_step, max_queue=100, flush_secs=30)
        return self._writer

    def pictures(self, data: torch.Tensor, count: int = 16) -> None:
        """The first of a batch of pictures (N, 1 or 3, H, W), brought into the range that can be shown."""
        if not self.enabled or data.ndim != 4 or data.shape[1] not in (1, 3):
            return
        shown = data[:count].detach().float().cpu()
        low, high = shown.amin(), shown.amax()
        self.add_images("input", (shown - low) / (high - low).clamp(min=1e-12))
