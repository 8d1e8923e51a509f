"""Where does the time of a training step go?"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import ParamSpec, TypeVar

import torch
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

from logger.files import aligned
from trainer.evaluate import Meters
from trainer.trainer import Trainer
from utils.errors import UserError

P, T = ParamSpec("P"), TypeVar("T")
WARM_UP = 5  # batches not measured: the first ones allocate, compile and choose kernels
PARTS = "data", "forward", "backward", "optimizer", "logging"


class Clock:
    """How long the parts of a step take: on the CPU, and on the GPU, which works later.

    Torch's profiler does not tell: on a GPU each of its labels comes twice, and the kernels of a
    backward pass belong to autograd's own thread. Two events in the GPU's queue enclose them.
    """

    def __init__(self, has_gpu: bool):
        self.has_gpu = has_gpu
        self.cpu = dict.fromkeys(PARTS, 0.0)  # seconds
        self._events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {}

    def timed(self, part: str, function: Callable[P, T]) -> Callable[P, T]:
        """`function`, whose time is added to that of the part."""

        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * self.has_gpu)]
            with record_function(part):
                for event in events[:1]:
                    event.record()
                begun = time.perf_counter()
                try:
                    return function(*args, **kwargs)
                finally:
                    self.cpu[part] += time.perf_counter() - begun
                    for event in events[1:]:
                        event.record()
                        self._events.setdefault(part, []).append(tuple(events))

        return call

    def gpu(self) -> dict[str, float]:
        """Seconds of each part on the GPU; all 0 without one. Waits for it."""
        if self.has_gpu:
            torch.cuda.synchronize()
        pairs = {part: self._events.get(part, []) for part in PARTS}
        return {part: sum(a.elapsed_time(b) for a, b in pairs[part]) / 1000 for part in PARTS}


def profile(trainer: Trainer, batches: int) -> dict[str, float]:
    """Train this number of batches under torch's profiler; the trainer cannot be used afterwards.

    Writes trace.json into the run's log folder, for https://ui.perfetto.dev or chrome://tracing,
    and logs a table. Returns the milliseconds per batch that each of PARTS takes on the CPU.
    """
    if batches < 1:
        raise UserError(f"--profile {batches}: should be at least 1")
    trainer.rehearse()
    trainer._settle_statistics = lambda epoch: None  # belongs to an epoch's end, not to its steps
    trainer.len_epoch = WARM_UP
    trainer._train_epoch(1)
    trainer.step, trainer.len_epoch, trainer.log_interval = 0, batches, max(1, batches // 10)
    # without a GPU, torch prints an error if asked for CUDA
    clock = Clock(has_gpu=trainer.engine.device.type == "cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if clock.has_gpu else [])]
    with torch_profile(activities=activities) as measured, ExitStack() as stack:
        for owner, name, part in (
            (trainer.engine, "to_device", "data"),
            (trainer.task, "step", "forward"),
            (trainer.engine, "backward", "backward"),
            (trainer, "_optimizer_step", "optimizer"),
            (trainer, "_log_progress", "logging"),
            (Meters, "update", "logging"),
        ):
            original = getattr(owner, name)
            setattr(owner, name, clock.timed(part, original))
            stack.callback(setattr, owner, name, original)
        next_batch = clock.timed("data", partial(next, trainer._stream))
        trainer._stream = iter(next_batch, None)
        trainer._train_epoch(1)
    trainer.end_workers()
    trace = trainer.config.log_dir / "trace.json"
    measured.export_chrome_trace(str(trace))
    cpu, gpu = ({part: seconds / batches * 1000 for part, seconds in each.items()}
                for each in (clock.cpu, clock.gpu()))  # fmt: skip
    total = sum(cpu.values())
    rows = [["of a batch", "CPU ms", "share", "GPU ms"]]
    rows += [[p, f"{cpu[p]:.3f}", f"{cpu[p] / total:.1%}", f"{gpu[p]:.3f}"] for p in PARTS]
    trainer.logger.info("\n".join([*aligned(rows), f"written: {trace}"]))
    return cpu
