"""Device, processes, precision, memory format, compiler, seeds: only this file knows of them."""

import contextlib
import copy
import ctypes
import dataclasses
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import PackedSequence

from utils.config.hints import EngineSettings
from utils.engine import distributed, launch, randomness
from utils.errors import UserError

Tensors = Any  # a tensor, or lists, tuples, dicts and dataclasses of such, nested
Call = tuple[tuple, dict[str, Tensors]]  # the arguments of a network
T = TypeVar("T")
# the compiler's modes that record them -> the same without
CUDA_GRAPHS = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}
AHEAD = 3  # batches that wait on a GPU
LEAST_CAPABILITY = 7, 0  # of a GPU for which Triton compiles
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of malloc.h


class Engine:
    """Where, how and from which seed a run computes.

    Args:
        device: "cpu", the number of a GPU ("0"), several ("2,3"), or None: a GPU if there is one
        n_gpu: how many GPUs the config requests; 0 means the CPU
        seed: all randomness of the run follows from it
        settings: the config's section "engine"; the defaults are tf32, channels_last, not
            compiled, not deterministic

    If there are fewer GPUs than requested, those that are available are used, and a warning
    (`pop_warnings`) says so. Raises UserError for a wrong device, and for settings that it cannot
    compute with.
    """

    _in_use: ClassVar["Engine | None"] = None  # whose settings torch has, see `_use_settings`

    def __init__(
        self,
        device: str | None = None,
        n_gpu: int = 1,
        seed: int = 0,
        settings: EngineSettings | None = None,
    ):
        settings = settings or {}
        self.seed = seed
        self.notes: list[str] = []
        self.device = self._choose_device(device, n_gpu)
        self.precision = settings.get("precision", "tf32")
        self.compile = settings.get("compile")
        self.sync_batchnorm = settings.get("sync_batchnorm", False)
        self.find_unused_parameters = settings.get("find_unused_parameters", False)
        if self.sync_batchnorm and distributed.world_size() > 1 and self.device.type == "cpu":
            raise UserError("engine.sync_batchnorm: SyncBatchNorm needs GPUs; omit it on the CPU")
        channels_last = settings.get("channels_last", True)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self._unscaled = False
        self._graph_breaks: set[str] = set()  # those that were reported
        self.deterministic = settings.get("deterministic", False)
        if self.device.type == "cuda":
            # cuBLAS reads it once in a process, and a later engine may be deterministic
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            self._check_gpu()
        keep_freed_memory()
        self._use_settings()

    def _choose_device(self, device: str | None, n_gpu: int) -> torch.device:
        requested, count = launch.device_numbers(device, n_gpu), torch.cuda.device_count()
        self._lacks_gpu = bool(requested) and count == 0
        _, local_rank, world_size = launch.dist_info()
        several = world_size > 1 and count > 0
        if requested and several and device is None:
            requested = list(range(count))
        available = [number for number in requested if number < count]
        if requested and several:
            shows_own = launch.started_by_slurm() and len(available) == 1
            index = 0 if shows_own else local_rank
            if index >= len(available):
                raise UserError(
                    f"process {local_rank} of this machine has no GPU: of "
                    f"{', '.join(map(str, requested))} there are {len(available)}; "
                    "start as many processes, or pass -d cpu"
                )
            return _select_gpu(available[index])
        if available != requested and (device is not None or n_gpu != 1):
            present = f"has only GPU {', '.join(map(str, range(count)))}" if count else "has none"
            self.notes.append(
                f"GPU {', '.join(map(str, requested))} asked for, but this machine {present}; "
                f"using {f'GPU {available[0]}' if available else 'the CPU'}"
            )
        elif len(available) > 1:
            self.notes.append(f"this is done on one GPU: number {available[0]}")
        return _select_gpu(available[0]) if available else torch.device("cpu")

    def _check_gpu(self) -> None:
        if self.compile is not None:
            capability = torch.cuda.get_device_capability(self.device)
            if capability < LEAST_CAPABILITY:
                needed, own = (".".join(map(str, each)) for each in (LEAST_CAPABILITY, capability))
                raise UserError(
                    f"engine.compile: the compiler needs a GPU of compute capability {needed}, and "
                    f"this one has {own}; set it to null"
                )
            if find_spec("triton") is None:
                raise UserError("engine.compile: Triton is missing, which compiles for GPUs; "
                                "install it, or set engine.compile to null")  # fmt: skip
        if self.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            self.notes.append("engine.precision: this GPU only emulates bf16; fp16 is faster")

    def _use_settings(self) -> None:
        """Let torch compute as this engine says; a second one may have been used in between."""
        before, Engine._in_use = Engine._in_use, self
        if before is self:
            return
        torch.use_deterministic_algorithms(self.deterministic)
        torch.backends.cudnn.benchmark = not self.deterministic
        is_exact = self.device.type == "cpu" or self.precision == "fp32"
        if any(engine and engine.device.type == "cuda" for engine in (before, self)):
            torch.set_float32_matmul_precision("highest" if is_exact else "high")
            torch.backends.cudnn.allow_tf32 = not is_exact

    def describe(self) -> str:
        """Where and how this engine computes, in words."""
        if self.device.type == "cpu":
            missing = ", as torch sees no GPU" if self._lacks_gpu else ""
            words = [f"CPU ({torch.get_num_threads()} threads){missing}"]
        else:
            words = [f"GPU {self.device.index} ({torch.cuda.get_device_name(self.device)})"]
        is_plain = self.device.type == "cpu" and self.precision == "tf32"
        words.append("fp32" if is_plain else self.precision)
        words += [f"compiled ({self.compile})"] if self.compile else []
        words += ["deterministic"] if self.deterministic else []
        if (count := distributed.world_size()) > 1:
            words.append(f"{count} processes")
        return ", ".join(words)

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def avoid_cuda_graphs(self, reason: str) -> None:
        """Compile without CUDA graphs, which overwrite the memory of passes before; `reason` says
        which passes are needed longer. To be called before `prepare`.
        """
        if self.device.type == "cuda" and self.compile in CUDA_GRAPHS:
            without = CUDA_GRAPHS[self.compile]
            self.notes.append(
                f'engine.compile: "{self.compile}" records CUDA graphs, which cannot be used with '
                f'{reason}; using "{without}"'
            )
            self.compile = without

    @contextlib.contextmanager
    def in_float32(self) -> Iterator[None]:
        """Nothing inside is computed in 16 bits, where small gradients would be lost."""
        precision, self.precision = self.precision, "fp32"
        try:
            yield
        finally:
            self.precision = precision

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model as it trains on this machine; `unwrap` undoes it. On all processes.

        All processes get the main process's weights and buffers. Raises RunError if the shapes of
        their networks differ.
        """
        model = model.to(self.device)
        if not getattr(unwrap(model), "takes_channels_last", True):
            self.memory_format = torch.contiguous_format
        set_memory_format(model, self.memory_format)
        if distributed.world_size() > 1:
            if self.sync_batchnorm:
                model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
            shapes = [(name, tuple(value.shape)) for name, value in model.state_dict().items()]
            distributed.check_equal("the network", shapes)
            # With one input channel, two memory formats are the same one.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            devices = [self.device] if self.device.type == "cuda" else None
            unused = self.find_unused_parameters
            model = DistributedDataParallel(model, devices, find_unused_parameters=unused)
        if self.compile is None:
            return model
        torch._dynamo.reset()  # it gives up on a forward() that was compiled for several networks
        # dynamic=False: the kernels must not depend on the shapes seen before, or a resumed run
        # would compute with other ones.
        return torch.compile(model, mode=self.compile, dynamic=False)

    def accumulating(self, model: nn.Module, more: bool) -> contextlib.AbstractContextManager:
        """Context of a forward and backward pass; if the step has `more` batches, processes do not
        exchange gradients yet.
        """
        return model.no_sync() if more and hasattr(model, "no_sync") else contextlib.nullcontext()

    def broadcast_buffers(self, *models: nn.Module | None) -> None:
        """Copy the main process's buffers, such as batch norm statistics, to all processes."""
        for model in models:
            if model is not None:
                distributed.broadcast_tensors(model.buffers())

    def forward(self, model: nn.Module, *args: Tensors, **kwargs: Tensors) -> Tensors:
        """The model's output, computed in the chosen precision and returned as float32."""
        self._use_settings()
        if self.precision in HALF:
            with torch.autocast(self.device.type, HALF[self.precision]):
                output = model(*args, **kwargs)
            output = map_tensors(output, lambda x: x.float() if x.dtype in HALF.values() else x)
        else:
            output = model(*args, **kwargs)
        if self.device.type == "cuda" and self.compile in CUDA_GRAPHS:
            output = map_tensors(output, torch.clone)  # CUDA graphs reuse the output buffer
        return output

    def to_device(self, batch: T) -> T:
        """Tensors, modules, and lists, tuples, dicts or partials of them, moved to the device."""
        return map_tensors(batch, self._move)

    def _move(self, part: Tensor | nn.Module) -> Tensor | nn.Module:
        if isinstance(part, nn.Parameter):  # it stays the one that the optimizer knows
            part.data = part.data.to(self.device)
            return part
        if isinstance(part, Tensor) and part.ndim == 4:
            return part.to(self.device, non_blocking=True, memory_format=self.memory_format)
        return part.to(self.device, non_blocking=True)

    def optimizer_options(self, cls: type, args: dict[str, object]) -> dict[str, bool]:
        """{"fused": True} if one kernel for the whole step is faster and `args` allow it."""
        fast = {torch.optim.Adam, torch.optim.AdamW}
        if self.device.type == "cuda":
            fast.add(torch.optim.SGD)
        chosen = any(args.get(key) is not None for key in ("foreach", "fused", "differentiable"))
        return {"fused": True} if cls in fast and not chosen else {}

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict) -> None:
        """Restore the optimizer's `state`, also if it was saved with another memory format."""
        optimizer.load_state_dict(state)
        for parameter, values in optimizer.state.items():
            for name, value in values.items():
                # a fused step ignores strides: it would pair the wrong elements
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    def backward(self, loss: Tensor, weight: float = 1.0) -> None:
        """Add `weight` times the loss's gradients to the parameters'."""
        self.scaler.scale(loss if weight == 1 else loss * weight).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the gradients their true size before anything reads them: fp16 scales them."""
        if not self._unscaled:
            self.scaler.unscale_(optimizer)
            self._unscaled = True

    def optimizer_step(
        self, optimizer: torch.optim.Optimizer, max_grad_norm: float | None = None
    ) -> None:
        """Clip the gradients to a common norm, step, and clear the gradients."""
        if max_grad_norm is not None:
            self.unscale(optimizer)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        self.scaler.step(optimizer)
        self.scaler.update()
        self._unscaled = False
        optimizer.zero_grad(set_to_none=True)

    def pop_warnings(self) -> list[str]:
        """Warnings about the machine and the compiler that were not returned before."""
        notes, self.notes = self.notes, []
        if self.compile is not None:
            from torch._dynamo.utils import counters

            reasons = dict.fromkeys(why.splitlines()[0] for why in counters.pop("graph_break", {}))
            new = [reason for reason in reasons if reason not in self._graph_breaks]
            self._graph_breaks.update(new)
            notes += [f"the network is compiled in several parts: {reason}" for reason in new]
        return notes

    @contextlib.contextmanager
    def seeded(self, *parts: int | str) -> Iterator[None]:
        """Random numbers inside follow from `parts`, on the device too; others are unaffected."""
        with randomness.seeded(*parts, device=self.device):
            yield

    def seed_epoch(self, epoch: int) -> None:
        """Start the epoch's randomness, equal on all processes; epoch 0 initializes the network."""
        randomness.seed_everything(self.seed, "epoch", epoch)

    def seed_rank(self, epoch: int, step: int = 0) -> None:
        """From here on each process draws its own numbers; rank 0 continues the epoch's."""
        if distributed.rank():
            randomness.seed_everything(self.seed, "epoch", epoch, step, distributed.rank())


def _select_gpu(number: int) -> torch.device:
    # so that libraries which do not ask for a device use this one, too
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


class Transfer:
    """Copies batches to a GPU while it still computes on those before: on a stream of its own.

    Args:
        device: a GPU
        finish: function of a batch there, which is done on the same stream
    """

    def __init__(self, device: torch.device, finish: Callable[[T], T]):
        self.device, self.finish = device, finish
        self.stream = torch.cuda.Stream(device)
        self._handed_out: deque[torch.cuda.Event] = deque()

    def __call__(self, batch: T) -> T:
        with torch.cuda.stream(self.stream):
            copied = map_tensors(batch, lambda part: part.to(self.device, non_blocking=True))
            copied = self.finish(copied)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.stream)
        # or its memory could be given away before it was computed on
        map_tensors(copied, lambda part: part.record_stream(computing))
        # batches that wait for a slow GPU would fill its memory
        self._handed_out.append(computing.record_event())
        if len(self._handed_out) > AHEAD:
            self._handed_out.popleft().synchronize()
        return copied


class Running:
    """A model that is called in the engine's precision, and so are its modules; its other
    attributes are the network's.
    """

    def __init__(self, engine: Engine, model: nn.Module):
        self._engine, self._model = engine, model

    def __call__(self, *args: Tensors, **kwargs: Tensors) -> Tensors:
        return self._engine.forward(self._model, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy asks for them before there is a model
            raise AttributeError(name)
        part = getattr(unwrap(self._model), name)
        return self._wrap(part) if isinstance(part, nn.Module) else part

    def _wrap(self, part: nn.Module) -> "Running":
        return Running(self._engine, part)


def set_memory_format(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Store the parameters with four axes in this format; a convolution's output follows them."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def unwrap(model: nn.Module) -> nn.Module:
    """The network itself, without the wrappers that the engine adds; only this goes to disk."""
    if isinstance(model, Running):
        model = model._model
    if hasattr(model, "_orig_mod"):
        return unwrap(model._orig_mod)
    is_parallel = isinstance(model, DistributedDataParallel | nn.DataParallel)
    return unwrap(model.module) if is_parallel else model


def unwrap_ddp(model: nn.Module) -> nn.Module:
    """The model without the wrapper in which processes wait for each other: shares of evaluation
    data are unequal.
    """
    inner = getattr(model, "_orig_mod", model)  # torch.compile is the outer wrapper
    return inner.module if isinstance(inner, DistributedDataParallel) else model


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the rest of the process; other C libraries stay as they are.

    Batches, and on the CPU each step of a network, free and request the same hundreds of megabytes.
    glibc returns them to the system, and each 4 KiB costs a page fault when requested again: a
    fifth of the time of a step on the CPU, and more.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, -1)  # never return free memory
        mallopt(MMAP_MAX, 0)  # and never take large blocks from outside the heap


def map_tensors(value: Tensors, change: Callable) -> Tensors:
    """`value` with all tensors and modules in it changed, however lists, tuples, dicts, dataclasses
    and partials nest.
    """
    if isinstance(value, Tensor | nn.Module):
        return change(value)
    if isinstance(value, PackedSequence):  # the lengths in it belong on the CPU
        parts = value.data, value.sorted_indices, value.unsorted_indices
        data, *indices = (part if part is None else change(part) for part in parts)
        return value._replace(data=data, sorted_indices=indices[0], unsorted_indices=indices[1])
    if isinstance(value, partial):
        args, keywords = (map_tensors(part, change) for part in (value.args, value.keywords))
        return partial(value.func, *args, **keywords)
    if isinstance(value, dict):
        return {key: map_tensors(part, change) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [map_tensors(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = copy.copy(value)
        for field in dataclasses.fields(value):
            part = map_tensors(getattr(value, field.name), change)
            object.__setattr__(changed, field.name, part)  # it may be frozen
        return changed
    return value
