"""The processes of a run, on torch.distributed. With a single process, all of it does nothing.

Call what is marked "on all processes" in each of them, in the same order: they wait for each other.
"""

import atexit
import contextlib
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from utils.engine import launch
from utils.errors import Interrupted, RunError, UserError, first_line, is_out_of_memory

T = TypeVar("T")
# what gloo, NCCL and the store say when a process that they talk to is gone
PEER_ENDED = (
    r"closed by peer|reset by peer|Broken pipe|Connection refused|ncclRemoteError|remote process|"
    r"recvVector|unexpected .*data"
)


@contextlib.contextmanager
def process_group(on_cpu: bool) -> Iterator[None]:
    """Join the processes that a launcher started beside this one, if any, until the block ends.

    Args:
        on_cpu: the processes compute on the CPU, even if GPUs are available

    Raises RunError if another process has ended, or if the processes cannot exchange numbers for
    another reason, or if parameters take no part in the loss.
    """
    info = launch.dist_info()
    if info.world_size == 1:
        yield
        return
    _end_with_launcher()
    hosts_store = info.rank == 0 and not _launcher_has_store()
    # A restart gets its own keys: the launcher's store still holds the addresses of dead processes.
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
    store = dist.TCPStore(*launch.meeting_point(), is_master=hosts_store)
    store = dist.PrefixStore(f"start {restart} of {info.world_size}", store)
    # Tensors on the CPU, and with them all Python objects, go through gloo on a GPU machine too:
    # torch sends objects from the CPU if the group has a backend for it.
    uses_nccl = torch.cuda.is_available() and not on_cpu and dist.is_nccl_available()
    backend = "cpu:gloo,cuda:nccl" if uses_nccl else "gloo"  # Windows has no NCCL
    dist.init_process_group(backend, store=store, rank=info.rank, world_size=info.world_size)
    try:
        yield
        dist.barrier()  # rank 0 hosts the store until the last process is done
    except BaseException as error:
        if uses_nccl and not isinstance(error, Interrupted):
            # NCCL would wait for processes that do not know of the error
            atexit.register(_leave, 2 if isinstance(error, UserError) else 1)
        else:  # all processes stop, or gloo tells the others
            dist.destroy_process_group()
        message = explain_exchange(error) if isinstance(error, RuntimeError) else None
        if message is None:
            raise
        raise RunError(message) from error
    dist.destroy_process_group()


def _leave(code: int) -> None:
    """End this process at once, without what libraries do at their end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def explain_exchange(error: RuntimeError) -> str | None:
    """Why processes could not exchange numbers; None if the error is about something else."""
    text = str(error)
    if "find_unused_parameters" in text:
        return "some parameters take no part in the loss: set engine.find_unused_parameters"
    if not (isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text):
        return None
    if is_out_of_memory(error):  # of the GPU, which NCCL needs some of
        return None
    if re.search(PEER_ENDED, text):
        return "another process of the run has ended, so this one ends too"
    # NCCL tells first where in its code, then what
    _, marked, cause = text.partition("Last error:\n")
    cause = cause.partition("\n")[0] if marked else first_line(error)
    return f"the processes cannot exchange numbers: {cause}"


def _end_with_launcher() -> None:
    """Watch the launcher: if it is killed, or stopped twice, it cannot end its processes itself."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1.0)
        os._exit(1)

    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=watch, daemon=True).start()


def rank() -> int:
    """This process's number among all processes of the run."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


def rank_slice(count: int) -> slice:
    """This process's part of `count` samples; the parts' sizes differ by one at most."""
    return slice(-(-count * rank() // world_size()), -(-count * (rank() + 1) // world_size()))


def barrier() -> None:
    """Wait until all processes are here."""
    if world_size() > 1:
        dist.barrier()


@contextlib.contextmanager
def local_main_first() -> Iterator[None]:
    """One process per machine runs the block first, to download or cache. On all processes."""
    first = launch.dist_info().local_rank == 0
    if not first:
        barrier()
    yield
    if first:
        barrier()


def broadcast(value: T) -> T:
    """The main process's `value`, any object that can be pickled. On all processes."""
    values = [value if is_main() else None]
    if world_size() > 1:
        dist.broadcast_object_list(values, 0)
    return values[0]


def run_on_main(function: Callable[[], T]) -> T:
    """The result of `function` in the main process. On all processes.

    If it raises a UserError or RunError there, all processes raise it.
    """
    result = error = None
    if is_main():
        try:
            result = function()
        except (UserError, RunError) as raised:
            error = raised
    result, error = broadcast((result, error))
    if error is not None:
        raise error
    return result


def all_gather(value: T) -> list[T]:
    """The values of all processes by rank, any objects that can be pickled. On all processes."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def broadcast_once(name: str, make: Callable[[], str]) -> str:
    """The main process's `make()`, or after a restart its result before it. On all processes."""

    def make_once() -> str:
        store = launcher_store()
        if not store.check([name]):
            store.set(name, make())
        return store.get(name).decode()

    return run_on_main(make_once)


def stored_value(name: str) -> str | None:
    """What `broadcast_once` returned before the processes were restarted. On all processes."""
    store = launcher_store()
    return run_on_main(lambda: store.get(name).decode() if store.check([name]) else None)


def launcher_store() -> dist.Store:
    """The store of torch's launcher, which survives restarts; without that launcher a new one."""
    if not _launcher_has_store():
        return dist.HashStore()
    return dist.PrefixStore("run", dist.TCPStore(*launch.meeting_point(), is_master=False))


def _launcher_has_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of all processes' `values`. On all processes."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def gather_tensors(values: Tensor, group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """All processes' tensors by rank; their first dimensions may differ. On all processes.

    For torchmetrics: its own function fails if a process had no samples. The tensor is empty then,
    and has neither the shape nor the dtype of the others.
    """
    from torchmetrics.utilities.distributed import gather_all_tensors

    headers = all_gather((tuple(values.shape), values.dtype))
    shape, dtype = max(headers, key=lambda header: math.prod(header[0]))
    if values.numel() == 0:
        values = values.new_empty((0, *shape[1:]), dtype=dtype)
    return gather_all_tensors(values, group)


class AsyncMax:
    """The largest number of all processes, one call later, so that no process waits for another.

    With a single process the answer is its own number.
    """

    def __init__(self):
        self._pending: tuple[dist.Work, Tensor] | None = None

    def __call__(self, number: int) -> int:
        if world_size() == 1:
            return number
        pending, largest = self._pending, torch.tensor([number])
        self._pending = dist.all_reduce(largest, dist.ReduceOp.MAX, async_op=True), largest
        if pending is None:
            return 0
        pending[0].wait()
        return int(pending[1])


def broadcast_tensors(tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors with the main process's. On all processes."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def check_equal(what: str, value: object) -> None:
    """Raises RunError if the processes' values differ. On all processes."""
    if any(other != value for other in all_gather(value)):
        raise RunError(f"{what} is not the same on all processes")
