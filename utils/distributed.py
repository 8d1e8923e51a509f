"""The processes of a run, on torch.distributed. Where a run has one process, everything here does nothing.

What is called "on all processes" must be called by each of them, in the same order: they wait for one another.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from utils import launch
from utils.errors import RunError, UserError

SECONDS_BETWEEN_LOOKS = 1.0  # at whether the launcher is still there


@contextlib.contextmanager
def joined(on_cpu: bool) -> Iterator[None]:
    """Within it this process is one of those that its launcher started; alone, where there is no launcher.

    Args:
        on_cpu: the processes compute on the CPU, though there be GPUs
    """
    place = launch.place()
    if place.world_size == 1:
        yield
        return
    _end_with_the_launcher()
    store = dist.TCPStore(*launch.meeting_point(), is_master=place.rank == 0 and not _has_launchers_store())
    # Processes that died have left addresses in the launcher's store, at which those started anew would wait for them.
    store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)} of {place.world_size}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and not on_cpu else "gloo"
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world_size)
    try:
        yield
        dist.barrier()  # what the first one keeps for all is needed until the last is done
    except RuntimeError as error:
        text = str(error)
        if "find_unused_parameters" in text:
            raise RunError(
                "some of the network's parameters take no part in the loss: set engine.find_unused_parameters"
            ) from error
        if isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text:
            raise RunError("another process of the run has ended, so this one ends too") from error
        raise
    dist.destroy_process_group()


def _end_with_the_launcher() -> None:
    """A launcher that is killed, or stopped twice, cannot end its processes: they see that it is gone."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=watch, daemon=True).start()


def rank() -> int:
    """This process's number; 0 is the first, which alone writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    return rank() == 0


def share(count: int, number: int | None = None, world: int | None = None) -> slice:
    """Which of `count` samples are this process's, or those of the process with that number; equal to within one."""
    number, world = rank() if number is None else number, world or world_size()
    return slice(-(-count * number // world), -(-count * (number + 1) // world))


def barrier() -> None:
    """Wait until all processes are here."""
    if world_size() > 1:
        dist.barrier()


@contextlib.contextmanager
def first_on_each_machine() -> Iterator[None]:
    """Let one process of each machine do what is inside before the others: fetching and caching data. On all processes."""
    first = launch.place().local_rank == 0
    if not first:
        barrier()
    yield
    if first:
        barrier()


def from_first(value: Any) -> Any:
    """The first process's `value`, plain data that JSON can hold, on all processes."""
    return of_all(value if is_first() else None)[0]


def done_by_first(make: Callable[[], Any]) -> Any:
    """What `make` gives the first process, plain data, on all processes; where it raises an error of ours, all do."""
    made: dict[str, Any] = {}
    if is_first():
        try:
            made = {"value": make()}
        except (UserError, RunError) as error:
            if world_size() == 1:
                raise
            made = {"kind": isinstance(error, RunError), "reason": str(error)}
    made = from_first(made)
    if "reason" in made:
        raise (RunError if made["kind"] else UserError)(made["reason"])
    return made["value"]


def of_all(value: Any) -> list[Any]:
    """The values of all processes, plain data that JSON can hold, on all processes."""
    if world_size() == 1:
        return [value]
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(sizes, torch.tensor([len(data)]))
    parts = [torch.zeros(int(max(sizes)), dtype=torch.uint8) for _ in sizes]
    dist.all_gather(parts, torch.cat([data, data.new_zeros(len(parts[0]) - len(data))]))
    return [json.loads(bytes(part[: int(size)].tolist())) for part, size in zip(parts, sizes, strict=True)]


def once(name: str, make: Callable[[], str]) -> str:
    """What the first process makes, on all processes; kept by the launcher, so that processes started anew find it."""
    made = None
    if is_first():
        kept = _launchers_store()
        if kept is None:
            made = make()
        elif kept.check([name]):
            made = kept.get(name).decode()
        else:
            made = make()
            kept.set(name, made)
    return from_first(made)


def kept_from_before(name: str) -> str | None:
    """What `once` made before the processes were started anew; None in a run's first start. On all processes."""
    kept = _launchers_store() if is_first() and launch.restarted() else None
    return from_first(kept.get(name).decode() if kept is not None and kept.check([name]) else None)


def first_to_say(sentence: str) -> bool:
    """Whether no other process has said it; they all find the same mistakes."""
    store = _launchers_store()
    try:
        return store is None or store.add(f"said {hashlib.sha256(sentence.encode()).hexdigest()}", 1) == 1
    except RuntimeError:  # it is gone
        return True


def _has_launchers_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


@functools.cache
def _launchers_store() -> Any:
    """Where the launcher's processes leave word for one another, which outlasts them; None without torch's launcher."""
    if not _has_launchers_store():
        return None
    return dist.PrefixStore("kata", dist.TCPStore(*launch.meeting_point(), is_master=False))


def total(values: Tensor) -> Tensor:
    """The sum of all processes' `values`, on all processes."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def gathered(values: Tensor, group: Any = None) -> list[Tensor]:
    """The processes' tensors, on all processes; equal but for their first dimension, or empty.

    For torchmetrics, whose own function breaks where a process has had nothing.
    """
    known = of_all([list(values.shape), str(values.dtype).removeprefix("torch.")])
    shape, kind = max(known, key=lambda one: math.prod(one[0]))
    shapes = [one if math.prod(one) else [0, *shape[1:]] for one, _ in known]
    flat = values.to(getattr(torch, kind)).flatten()
    parts = [flat.new_zeros(math.prod(shape)) for _ in known]
    dist.all_gather(parts, torch.cat([flat, flat.new_zeros(len(parts[0]) - len(flat))]))
    return [part[: math.prod(one)].view(one) for part, one in zip(parts, shapes, strict=True)]


class Question:
    """The largest of all processes' numbers; asked at one call and answered at the next, so that none waits for others.

    With one process the answer is the number itself.
    """

    def __init__(self):
        self._asked: tuple[Any, Tensor] | None = None

    def __call__(self, number: int) -> int:
        if world_size() == 1:
            return number
        before, largest = self._asked, torch.tensor([number])
        self._asked = dist.all_reduce(largest, dist.ReduceOp.MAX, async_op=True), largest
        if before is None:
            return 0
        before[0].wait()
        return int(before[1])


def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors with the first process's. On all processes."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def check_same(what: str, parts: Iterable[tuple[str, Any]]) -> None:
    """Raises RunError where the named parts, tensors or what can be printed, are not the same on all processes."""
    if world_size() == 1:
        return
    digest = hashlib.blake2b(digest_size=7)
    for name, part in parts:
        digest.update(f"{name} {tuple(part.shape) if isinstance(part, Tensor) else part}".encode())
        if isinstance(part, Tensor):
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    number = int.from_bytes(digest.digest(), "little")
    extremes = torch.tensor([number, -number])
    dist.all_reduce(extremes, dist.ReduceOp.MAX)
    if extremes.sum() != 0:
        raise RunError(f"{what} is not the same on all processes")
