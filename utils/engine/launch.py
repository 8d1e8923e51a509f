"""Start one process per device, and find out which of several processes this one is.

Torch's elastic launcher does the work; it is imported lazily: --help must not load torch.
"""

import contextlib
import math
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from utils.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure


class DistInfo(NamedTuple):
    """One of a run's processes: its number among all and on its machine, and how many there are."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1


def dist_info() -> DistInfo:
    """This process, by torchrun's variables, or else by SLURM's for a step that srun started."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        names = "RANK", "LOCAL_RANK", "WORLD_SIZE"
    # Not SLURM_NTASKS: the batch script has it too, but is a single process.
    elif int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        names = "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"
    else:
        return DistInfo()
    return DistInfo(*(int(env.get(name, 0)) for name in names))


def started_by_slurm() -> bool:
    """Whether SLURM's srun started the processes, which may show each of them only its own GPU."""
    return "RANK" not in os.environ and dist_info().world_size > 1


def meeting_point() -> tuple[str, int]:
    """Address and port, on the machine of rank 0, at which the processes find each other."""
    env = os.environ
    job = int(env.get("SLURM_JOB_ID", 0)) * 8 + int(env.get("SLURM_STEP_ID", 0))
    address = env.get("MASTER_ADDR") or first_host(env["SLURM_STEP_NODELIST"])
    return address, int(env.get("MASTER_PORT", 15000 + job % 15000))


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list: "node[07-09,12],gpu1" -> "node07"."""
    name, bracket, numbers = re.match(r"([^,\[]+)(\[)?([^\],-]*)", nodes).groups()
    return name + numbers if bracket else name


def restarted() -> bool:
    """Whether torch's launcher has restarted the processes because one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def is_first_to_say(message: str) -> bool:
    """Whether no other process has printed this message; all of them find the same mistakes."""
    if dist_info().world_size == 1:
        return True
    from utils.engine import distributed

    try:
        return distributed.launcher_store().add(f"message {message}", 1) == 1
    except RuntimeError:  # the launcher is gone
        return True


def cores(root: Path = Path("/")) -> int:
    """The number of processor cores that this process may use: the least that its affinity, a
    container's quota and SLURM allow. `root` is where /proc and /sys are.
    """
    allowed = [_visible_cores(), *map(math.ceil, _quotas(root))]
    if "SLURM_CPUS_PER_TASK" in os.environ:
        allowed.append(int(os.environ["SLURM_CPUS_PER_TASK"]))
    return max(1, min(allowed))


def _visible_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """The cores that the control groups of this process allow (Linux, cgroup v1 and v2)."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, path = line.split(":", 2)
        top = root / "sys/fs/cgroup"
        if controllers:
            if "cpu" not in controllers.split(","):
                continue
            top /= controllers
        group = top / path.lstrip("/")
        # in a container the path can be that of the host: what is not there limits nothing
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):
                if controllers:
                    words = [(folder / f"cpu.cfs_{n}_us").read_text() for n in ("quota", "period")]
                else:
                    words = (folder / "cpu.max").read_text().split()
                quota, period = map(int, words)  # v2 says "max" where there is no limit, v1 -1
                if quota > 0:
                    yield quota / period
            if folder == top:
                break


def configure_threads(count: int | None = None, processes: int = 1) -> None:
    """How many threads compute in each of so many processes, by default one for each core.

    To be called before torch is loaded; nothing that the user's environment says is changed.
    Raises UserError.
    """
    # Threads that wait for work keep their core busy for a while. libgomp's default is so long
    # that a neighbour's processes, and so this one, take twice the time.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if count is not None:
        if count < 1:
            raise UserError(f"--threads {count}: should be at least 1")
        os.environ["OMP_NUM_THREADS"] = str(count)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(count)
    elif processes > 1 or cores() < _visible_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))


def device_numbers(device: str | None, n_gpu: int) -> list[int]:
    """The GPUs that `-d` ("2,3") or the config requests; none for the CPU. Raises UserError."""
    if device == "cpu" or (device is None and n_gpu == 0):
        return []
    if device is None:
        return list(range(n_gpu))
    parts = device.removeprefix("cuda:").split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UserError(f'-d {device}: should be "cpu", a number like 0, or several like 2,3')
    numbers = [int(part) for part in parts]
    if len(set(numbers)) < len(numbers):
        raise UserError(f"-d {device}: a GPU runs one process; name each GPU once")
    return numbers


def processes_to_start(device: str | None, procs: int | None, n_gpu: int) -> int:
    """How many processes to start for the work; 1 means that this process does it itself.

    One per GPU that is requested (`-d`, or `n_gpu` of the config) and available, or `--procs` on
    the CPU. Always 1 if this process is already one of several. Raises UserError.
    """
    requested = device_numbers(device, n_gpu)
    if procs is not None and procs < 1:
        raise UserError(f"--procs {procs}: should be at least 1")
    if dist_info().world_size > 1 or (len(requested) < 2 and procs is None):
        return 1
    import torch

    available = sum(number < torch.cuda.device_count() for number in requested)
    if procs is not None and available and procs != available:
        raise UserError(
            f"--procs {procs}: a GPU runs one process, and {available} are chosen; "
            "pass -d cpu, or leave --procs out"
        )
    return max(procs or available, 1)


def start(count: int, script: str, argv: list[str], max_restarts: int) -> int:
    """Run `script` in `count` processes on this machine until all end; returns the exit code.

    Equals `torchrun --standalone --local-addr localhost --nproc-per-node COUNT --max-restarts N
    SCRIPT ARGV`, with the cores divided among the processes. They receive this process's signals;
    one that is repeated two seconds later ends this process, and they follow.
    """
    import logging
    import time

    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from utils.engine.signals import SAVING, SECONDS_IGNORED, stopping_signals

    configure_threads(processes=count)
    # localhost: the machine's own name may not resolve, in containers for example
    options = f"--standalone --local-addr localhost --nproc-per-node {count}".split()
    arguments = run.parse_args([*options, f"--max-restarts={max_restarts}", script, *argv])
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ""  # none by torch's handler
    stopped_at = -math.inf

    def stop(signum: int, frame: object) -> None:
        nonlocal stopped_at
        if time.monotonic() - stopped_at >= SECONDS_IGNORED:
            stopped_at = time.monotonic()
            raise SignalException("stopped", signal.Signals(signum))

    def pass_on(signum: int, frame: object) -> None:
        with contextlib.suppress(OSError):  # not Linux, or a child has ended
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
            for child in map(int, children.split()):
                if script.encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(child, signum)

    handlers = {signum: signal.signal(signum, stop) for signum in stopping_signals()}
    if hasattr(signal, SAVING):
        handlers[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, pass_on)
    logging.disable(logging.CRITICAL)  # the processes report their errors themselves
    try:
        run.run(arguments)
    except ChildFailedError as error:
        return _exit_code(error.failures)
    except SignalException as stopped:
        return 128 + stopped.sigval
    finally:
        logging.disable(logging.NOTSET)
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    return 0


def _exit_code(failures: "dict[int, ProcessFailure]") -> int:
    # The largest: if one process is killed, the others fail with 1; 2 and 128 + signal say more.
    for rank, failure in sorted(failures.items()):
        # SIGTERM is how the launcher ends the others
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
            name = signal.Signals(-failure.exitcode).name
            message = f"process {rank} was ended by {name}; --max-restarts N would continue the run"
            print(message, file=sys.stderr)
    return max(1, *(failure.exitcode for failure in failures.values()))
