"""Starting several processes, one per device, and knowing one's place among those that somebody else started.

Torch's elastic launcher does the work; nothing here imports torch before it is needed.
"""

import os
import re
import signal
import sys
from typing import Any, NamedTuple

from utils.errors import UserError

HANGUPS = [getattr(signal, name) for name in ("SIGHUP", "SIGQUIT") if hasattr(signal, name)]


class Place(NamedTuple):
    """One process among those of a run: its number among all and among those of its machine, and how many there are."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1


def place() -> Place:
    """This process's place: torchrun's variables say it, or else SLURM's, of a step that srun started."""
    given = os.environ
    if "RANK" in given and "WORLD_SIZE" in given:
        return Place(int(given["RANK"]), int(given.get("LOCAL_RANK", 0)), int(given["WORLD_SIZE"]))
    # Not SLURM_NTASKS: the batch script has that too, and is alone.
    if int(given.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return Place(int(given["SLURM_PROCID"]), int(given["SLURM_LOCALID"]), int(given["SLURM_STEP_NUM_TASKS"]))
    return Place()


def meeting_point() -> tuple[str, int]:
    """Address and port at which the processes meet, on the first one's machine."""
    given = os.environ
    if "MASTER_ADDR" in given and "MASTER_PORT" in given:
        return given["MASTER_ADDR"], int(given["MASTER_PORT"])
    job = int(given.get("SLURM_JOB_ID", 0)) * 8 + int(given.get("SLURM_STEP_ID", 0))
    return given.get("MASTER_ADDR", first_host(given["SLURM_STEP_NODELIST"])), 15000 + job % 15000


def first_host(listing: str) -> str:
    """The first of the hosts that SLURM names in short: "node[07-09,12],gpu1" -> "node07"."""
    name, bracket, numbers = re.match(r"([^,\[]+)(\[)?([^\],-]*)", listing).groups()
    return name + numbers if bracket else name


def restarted() -> bool:
    """Whether torch's launcher has started the processes anew, after one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def is_first_to_say(sentence: str) -> bool:
    """Whether no other process has said it; they all find the same mistakes."""
    if place().world_size == 1:
        return True
    from utils import distributed

    return distributed.first_to_say(sentence)


def device_numbers(device: str | None, n_gpu: int) -> list[int]:
    """Which GPUs `-d` asks for ("2,3"), or else the config; none for the CPU. Raises UserError where it is no device."""
    if device == "cpu" or (device is None and n_gpu == 0):
        return []
    if device is None:
        return list(range(n_gpu))
    parts = device.removeprefix("cuda:").split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UserError(f'-d {device}: should be "cpu", a number like 0, or several like 2,3')
    numbers = [int(part) for part in parts]
    if len(set(numbers)) < len(numbers):
        raise UserError(f"-d {device}: a GPU takes one process; name each once")
    return numbers


def processes_to_start(arguments: Any, n_gpu: int) -> int:
    """How many processes this one should start to do its work: one per GPU asked for and there, or --procs on the CPU.

    1 where it should do it itself: also because others have started it as one of several.
    """
    wanted, procs = device_numbers(arguments.device, n_gpu), arguments.procs
    if procs is not None and procs < 1:
        raise UserError(f"--procs {procs}: should be at least 1")
    if place().world_size > 1 or (len(wanted) < 2 and procs is None):
        return 1
    import torch

    there = sum(number < torch.cuda.device_count() for number in wanted)
    if procs is not None and there and procs != there:
        raise UserError(f"--procs {procs}: a GPU has one process, and {there} are chosen; say -d cpu, or leave --procs out")
    return max(procs or there, 1)


def start(count: int, script: str, argv: list[str], max_restarts: int) -> int:
    """Run `script` in `count` processes on this machine until all have ended; the exit code.

    It is `torchrun --standalone --local-addr localhost --nproc-per-node COUNT --max-restarts N SCRIPT ARGV`, with the cores
    shared out among the processes. A signal is handed on to them; a second one ends this process, and they follow it.
    """
    import logging

    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))
    # the machine's own name, which the processes would meet at, may not resolve: in containers, say
    options = ["--standalone", "--local-addr", "localhost", "--nproc-per-node", str(count)]
    options += ["--max-restarts", str(max_restarts)]
    arguments = run.parse_args([*options, script, *argv])
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, *HANGUPS)}
    logging.disable(logging.CRITICAL)  # what the processes say is enough
    try:
        run.run(arguments)
    except ChildFailedError as error:
        return _exit_code(error.failures)
    except SignalException as stop:
        return 128 + stop.sigval
    finally:
        logging.disable(logging.NOTSET)
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    return 0


def _exit_code(failures: dict[int, Any]) -> int:
    # One that was killed makes the others fail, with exit code 1; one that the user stopped or must correct says more.
    for number, failure in sorted(failures.items()):
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:  # which is how the launcher ends the others
            name = signal.Signals(-failure.exitcode).name
            print(f"process {number} was ended by {name}; --max-restarts N would go on", file=sys.stderr)
    return max(1, *(failure.exitcode for failure in failures.values()))
