"""Where does the time of a training step go?"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torchs_profile

from trainer.evaluate import Meters
from utils.errors import UserError

WARM_UP = 5  # batches that are not counted: the first ones allocate, compile and choose kernels


def profile(trainer: Any, batches: int) -> dict[str, float]:
    """Train so many `batches` under torch's profiler; the network is not kept.

    Writes trace.json into the run's log folder, for https://ui.perfetto.dev or chrome://tracing, and logs a table. Returns
    the milliseconds that a batch's data, forward, backward, optimizer and logging take on the CPU.
    """
    if batches < 1:
        raise UserError(f"--profile {batches}: should be at least 1")
    trainer.len_epoch = WARM_UP
    trainer._train_epoch(1)
    trainer.step, trainer.len_epoch, trainer.log_interval = 0, batches, max(1, batches // 10)
    # asked for CUDA's on a machine without a GPU, torch writes an error of its own
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if trainer.engine.device.type == "cuda" else [])]
    with torchs_profile(activities=kinds) as measured, contextlib.ExitStack() as stack:
        for owner, name, part in (
            (trainer.engine, "to_device", "data"),
            (trainer.engine, "forward", "forward"),
            (trainer, "loss", "forward"),
            (trainer.engine, "backward", "backward"),
            (trainer, "_optimizer_step", "optimizer"),
            (trainer, "_log_progress", "logging"),
            (Meters, "update", "logging"),
        ):
            stack.enter_context(patch.object(owner, name, _ranged(getattr(owner, name), part)))
        rest = trainer._rest_of_epoch
        trainer._rest_of_epoch = lambda epoch: _labelled_batches(rest(epoch))
        trainer._train_epoch(1)
    trace = trainer.config.log_dir / "trace.json"
    measured.export_chrome_trace(str(trace))
    figures, lines = {}, [f"{'of a batch':12}  CPU ms   share   GPU ms"]
    found = {event.key: event for event in measured.key_averages()}
    parts = ("data", "forward", "backward", "optimizer", "logging")
    whole = sum(found[part].cpu_time_total for part in parts if part in found)
    for part in parts:
        event = found.get(part)
        cpu, gpu = (event.cpu_time_total, event.device_time_total) if event else (0, 0)
        figures[part] = cpu / batches / 1000
        lines.append(f"{part:12}{figures[part]:8.3f}  {cpu / whole:6.1%} {gpu / batches / 1000:8.3f}")
    trainer.logger.info("\n".join([*lines, f"written: {trace}"]))
    return figures


def _ranged(function: Callable, part: str) -> Callable:
    """The function, each call of which is a range called `part` in the trace."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(part):
            return function(*args, **kwargs)

    return call


def _labelled_batches(batches: Iterator) -> Iterator:
    while True:
        with record_function("data"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
