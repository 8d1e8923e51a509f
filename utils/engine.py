"""The machine: device, precision, memory format, compiler, seeds. The only place that knows of any."""

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from utils.errors import UserError
from utils.hints import Machine
from utils.randomness import seed_everything

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
        channels_last = settings.get("channels_last", True)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self._unscaled = False
        self._breaks: set[str] = set()  # reasons that were said
        self._set_switches(settings.get("deterministic", False))

    def _set_switches(self, deterministic: bool) -> None:
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = not deterministic
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("highest" if self.precision == "fp32" else "high")
            torch.backends.cudnn.allow_tf32 = self.precision != "fp32"
            if deterministic:  # cuBLAS reads it when it is first used
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    def _choose(self, device: str | None, n_gpu: int) -> torch.device:
        if device == "cpu" or (device is None and n_gpu == 0):
            return torch.device("cpu")
        wanted = list(range(n_gpu)) if device is None else _numbers(device)
        count = torch.cuda.device_count()
        there = [number for number in wanted if number < count]
        if there != wanted and not (device is None and n_gpu == 1):
            self.notes.append(
                f"GPU {', '.join(map(str, wanted))} asked for, but this machine has {count or 'none'}; "
                f"using {'GPU ' + str(there[0]) if there else 'the CPU'}"
            )
        elif len(there) > 1:
            self.notes.append(f"one run uses one GPU for now: number {there[0]}")
        return torch.device("cuda", there[0]) if there else torch.device("cpu")

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model as it trains on this machine; `unwrap` gives it back."""
        model = model.to(self.device)
        for parameter in model.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=self.memory_format)
        if self.compile is None:
            return model
        torch._dynamo.reset()  # it compiles one forward() a few times only, and pruning brings network after network
        # dynamic=False: what is compiled for a batch's shape must not follow from the shapes seen before, or a resumed
        # run would compute with other kernels.
        return torch.compile(model, mode=self.compile, dynamic=False)

    def forward(self, model: nn.Module, data: Any) -> Any:
        """What the model gives, computed in the chosen precision; losses and metrics are to see float32."""
        if self.precision not in HALF:
            return model(data)
        with torch.autocast(self.device.type, HALF[self.precision]):
            output = model(data)
        return _changed(output, lambda part: part.float() if part.dtype in HALF.values() else part)

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

    def backward(self, loss: torch.Tensor, batches: int = 1) -> None:
        """Add the loss's gradients to the parameters', as one of so many `batches` whose mean is wanted."""
        self.scaler.scale(loss if batches == 1 else loss / batches).backward()

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
        """Start the epoch's randomness (dropout and the like); epoch 0 is the making of the network."""
        seed_everything(self.seed, "epoch", epoch)


def unwrap(model: nn.Module) -> nn.Module:
    """The network itself, without the layers a machine puts around it; nothing else goes on disk."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def _changed(value: Any, change: Callable) -> Any:
    """`value` with each tensor and module in it, in lists, tuples, dicts and partials, changed by `change`."""
    if isinstance(value, torch.Tensor | nn.Module):
        return change(value)
    if isinstance(value, functools.partial):
        return functools.partial(value.func, *_changed(value.args, change), **_changed(value.keywords, change))
    if isinstance(value, dict):
        return {key: _changed(part, change) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [_changed(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _numbers(device: str) -> list[int]:
    parts = device.removeprefix("cuda:").split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UserError(f'-d {device}: should be "cpu", a number like 0, or several like 2,3')
    return [int(part) for part in parts]
