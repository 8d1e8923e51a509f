"""The machine: processes, device, precision, memory format, compiler, seeds. The only place that knows of any."""

import contextlib
import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils import distributed, launch, randomness
from utils.errors import UserError
from utils.hints import Machine
from utils.memory import keep_freed_memory

CUDA_GRAPHS = "reduce-overhead", "max-autotune"  # the compiler's modes that record them
NOTHING = contextlib.nullcontext()
MOVABLE = torch.Tensor, nn.Module
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """Where, how, and from which seed a run computes.

    Args:
        device: "cpu", the number of a GPU ("0"), several ("2,3"), or None for a GPU if there is one
        n_gpu: how many GPUs the config asks for; 0 means the CPU
        seed: what all randomness of the run follows from
        settings: the config's section "engine"; what it leaves out is tf32, not compiled, channels_last, not deterministic

    More GPUs than there are is no error: what there is is used, and `notes` says so.
    Raises UserError for a device that is none.
    """

    def __init__(self, device: str | None = None, n_gpu: int = 1, seed: int = 0, settings: Machine | None = None):
        settings = settings or {}
        self.seed = seed
        self.notes: list[str] = []
        self.device = self._choose(device, n_gpu)
        self.precision = settings.get("precision", "tf32")
        self.compile = settings.get("compile")
        self.sync_batchnorm = settings.get("sync_batchnorm", False)
        self.find_unused_parameters = settings.get("find_unused_parameters", False)
        if self.sync_batchnorm and distributed.world_size() > 1 and self.device.type == "cpu":
            raise UserError("engine.sync_batchnorm: torch's SyncBatchNorm needs GPUs; leave it out on the CPU")
        channels_last = settings.get("channels_last", True)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self._unscaled = False
        self._breaks: set[str] = set()  # reasons that were said
        self._set_switches(settings.get("deterministic", False))

    def _set_switches(self, deterministic: bool) -> None:
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = not deterministic
        keep_freed_memory()
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("highest" if self.precision == "fp32" else "high")
            torch.backends.cudnn.allow_tf32 = self.precision != "fp32"
            if deterministic:  # cuBLAS reads it when it is first used
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    def _choose(self, device: str | None, n_gpu: int) -> torch.device:
        wanted, count, place = launch.device_numbers(device, n_gpu), torch.cuda.device_count(), launch.place()
        if not wanted:
            return torch.device("cpu")
        if place.world_size > 1 and count:
            return self._own_gpu(wanted if device else list(range(count)), place.local_rank, count)
        there = [number for number in wanted if number < count]
        if there != wanted and not (device is None and n_gpu == 1):
            self.notes.append(
                f"GPU {', '.join(map(str, wanted))} asked for, but this machine has {count or 'none'}; "
                f"using {'GPU ' + str(there[0]) if there else 'the CPU'}"
            )
        elif len(there) > 1:
            self.notes.append(f"this is done on one GPU: number {there[0]}")
        return torch.device("cuda", there[0]) if there else torch.device("cpu")

    def _own_gpu(self, numbers: list[int], local_rank: int, count: int) -> torch.device:
        """Of the GPUs that the machine's processes share out, this one's. A scheduler may show each its own alone."""
        there = [number for number in numbers if number < count]
        if len(there) == 1:
            local_rank = 0
        if local_rank >= len(there):
            raise UserError(
                f"process {local_rank} of this machine has no GPU: of {', '.join(map(str, numbers))} there are "
                f"{len(there)}; start as many processes, or say -d cpu"
            )
        device = torch.device("cuda", there[local_rank])
        torch.cuda.set_device(device)
        return device

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model as it trains on this machine; `unwrap` gives it back. On all processes.

        Raises RunError where the processes have different networks; the weights are the first one's.
        """
        model = model.to(self.device)
        for parameter in model.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=self.memory_format)
        model = self._shared(model)
        if self.compile is None:
            return model
        torch._dynamo.reset()  # it compiles one forward() a few times only, and pruning brings network after network
        # dynamic=False: what is compiled for a batch's shape must not follow from the shapes seen before, or a resumed
        # run would compute with other kernels.
        return torch.compile(model, mode=self.compile, dynamic=False)

    def _shared(self, model: nn.Module) -> nn.Module:
        """The model whose gradients are the mean over all processes; itself where there is one."""
        if distributed.world_size() == 1:
            return model
        if self.sync_batchnorm:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        distributed.check_same("the network", [(name, tuple(p.shape)) for name, p in model.state_dict().items()])
        # Where there is one input channel, two orders in memory are the same one.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        places = [self.device] if self.device.type == "cuda" else None
        model = DistributedDataParallel(model, places, find_unused_parameters=self.find_unused_parameters)
        distributed.check_same("the network's first state", model.module.state_dict().items())
        return model

    def accumulating(self, model: nn.Module, more: bool) -> contextlib.AbstractContextManager:
        """Around forward and backward pass: where `more` batches belong to the step, gradients stay in each process."""
        return model.no_sync() if more and hasattr(model, "no_sync") else NOTHING

    def share_buffers(self, *models: nn.Module | None) -> None:
        """Let all processes have the first one's batch norm statistics and the like, before the network is judged."""
        for model in models:
            if model is not None:
                distributed.take_from_first(model.buffers())

    def forward(self, model: nn.Module, data: Any) -> Any:
        """What the model gives, computed in the chosen precision; losses and metrics are to see float32."""
        half = self.precision in HALF
        with torch.autocast(self.device.type, HALF[self.precision]) if half else NOTHING:
            output = model(data)
        if half:
            output = _changed(output, lambda part: part.float() if part.dtype in HALF.values() else part)
        if self.device.type == "cuda" and self.compile in CUDA_GRAPHS:
            output = _changed(output, torch.clone)  # the next batch's output comes to lie where this one does
        return output

    def to_device(self, batch: Any) -> Any:
        """Tensors, modules, and lists, tuples, dicts or partials of them, moved to the device."""
        return _changed(batch, self._move)

    def _move(self, part: torch.Tensor | nn.Module) -> torch.Tensor | nn.Module:
        if isinstance(part, torch.Tensor) and part.ndim == 4:
            return part.to(self.device, non_blocking=True, memory_format=self.memory_format)
        return part.to(self.device, non_blocking=True)

    def optimizer_options(self, kind: Callable, args: dict) -> dict[str, bool]:
        """{"fused": True} where one kernel for all of the optimizer's step is faster and `args` ask for no other way."""
        fast = {torch.optim.Adam, torch.optim.AdamW} | ({torch.optim.SGD} if self.device.type == "cuda" else set())
        chosen = any(args.get(key) is not None for key in ("foreach", "fused", "differentiable"))
        return {"fused": True} if kind in fast and not chosen else {}

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict) -> None:
        """Let the optimizer go on from `state`, also where that was saved with another memory format."""
        optimizer.load_state_dict(state)
        for parameter, values in optimizer.state.items():
            for name, value in values.items():
                # a fused step runs through memory, and would not notice that the order there differs
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    def backward(self, loss: torch.Tensor, weight: float = 1.0) -> None:
        """Add the loss's gradients to the parameters', so many times."""
        self.scaler.scale(loss if weight == 1 else loss * weight).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring the gradients to their own size, before somebody looks at them: fp16 computes with larger ones."""
        if not self._unscaled:
            self.scaler.unscale_(optimizer)
            self._unscaled = True

    def optimizer_step(self, optimizer: torch.optim.Optimizer, max_grad_norm: float | None = None) -> None:
        """Clip the gradients' common norm, let the optimizer use them, and forget them."""
        if max_grad_norm is not None:
            self.unscale(optimizer)
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], max_grad_norm)
        self.scaler.step(optimizer)
        self.scaler.update()
        self._unscaled = False
        optimizer.zero_grad(set_to_none=True)

    def take_notes(self) -> list[str]:
        """What is to be known of the machine and has not been said yet."""
        notes, self.notes = self.notes, []
        if self.compile is not None:
            from torch._dynamo.utils import counters

            found = dict.fromkeys(why.splitlines()[0] for why in counters.pop("graph_break", {}))
            notes += [f"compiled in parts, as not all could be: {why}" for why in found if why not in self._breaks]
            self._breaks |= found.keys()
        return notes

    def seed_epoch(self, epoch: int) -> None:
        """Start the epoch's randomness; epoch 0 is the making of the network. The same on all processes."""
        randomness.seed_everything(self.seed, "epoch", epoch)

    def seed_share(self, epoch: int, step: int = 0) -> None:
        """Let each process draw its own numbers from here on (dropout); the first goes on with the epoch's."""
        if distributed.rank():
            randomness.seed_everything(self.seed, "epoch", epoch, step, distributed.rank())


def unwrap(model: nn.Module) -> nn.Module:
    """The network itself, without the layers a machine puts around it; nothing else goes on disk."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def without_exchange(model: nn.Module) -> nn.Module:
    """The model without the layer in which processes wait for one another, to evaluate on shares that are not equal."""
    inner = getattr(model, "_orig_mod", model)  # compiled around it
    return inner.module if isinstance(inner, DistributedDataParallel) else model


def _changed(value: Any, change: Callable) -> Any:
    """`value` with each tensor and module in it, in lists, tuples, dicts and partials, changed by `change`."""
    if isinstance(value, MOVABLE):
        return change(value)
    if isinstance(value, functools.partial):
        return functools.partial(value.func, *_changed(value.args, change), **_changed(value.keywords, change))
    if isinstance(value, dict):
        return {key: _changed(part, change) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [_changed(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
