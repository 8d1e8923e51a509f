"""Where does the time of a training step go?"""

from contextlib import ExitStack
from functools import partial

from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

from logger.files import aligned
from trainer.evaluate import Meters
from trainer.trainer import Trainer
from utils.errors import UserError

WARM_UP = 5  # batches not measured: the first ones allocate, compile and choose kernels
PARTS = "data", "forward", "backward", "optimizer", "logging"


def profile(trainer: Trainer, batches: int) -> dict[str, float]:
    """Train this number of batches under torch's profiler; the trainer cannot be used afterwards.

    Writes trace.json into the run's log folder, for https://ui.perfetto.dev or chrome://tracing,
    and logs a table. Returns the milliseconds per batch that each of PARTS takes on the CPU.
    """
    if batches < 1:
        raise UserError(f"--profile {batches}: should be at least 1")
    trainer.rehearse()
    trainer.len_epoch = WARM_UP
    trainer._train_epoch(1)
    trainer.step, trainer.len_epoch, trainer.log_interval = 0, batches, max(1, batches // 10)
    # without a GPU, torch prints an error if asked for CUDA
    has_gpu = trainer.engine.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if has_gpu else [])]
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
            setattr(owner, name, record_function(part)(original))
            stack.callback(setattr, owner, name, original)
        next_batch = record_function("data")(partial(next, trainer._stream))
        trainer._stream = iter(next_batch, None)
        trainer._train_epoch(1)
    trainer.end_workers()
    trace = trainer.config.log_dir / "trace.json"
    measured.export_chrome_trace(str(trace))
    events = {event.key: event for event in measured.key_averages()}
    cpu = {part: events[part].cpu_time_total / batches / 1000 for part in PARTS}
    gpu = {part: events[part].device_time_total / batches / 1000 for part in PARTS}
    total = sum(cpu.values())
    rows = [["of a batch", "CPU ms", "share", "GPU ms"]]
    rows += [[p, f"{cpu[p]:.3f}", f"{cpu[p] / total:.1%}", f"{gpu[p]:.3f}"] for p in PARTS]
    trainer.logger.info("\n".join([*aligned(rows), f"written: {trace}"]))
    return cpu
