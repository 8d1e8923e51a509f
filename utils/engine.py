"""The machine: device and seeds. The only place that knows where tensors live."""

import functools
from typing import Any

import torch
from torch import nn

from utils.errors import UserError
from utils.randomness import seed_everything


class Engine:
    """Where and from which seed a run computes.

    Args:
        device: "cpu", the number of a GPU ("0"), several ("2,3"), or None for a GPU if there is one
        n_gpu: how many GPUs the config asks for; 0 means the CPU
        seed: what all randomness of the run follows from

    More GPUs than there are is no error: what there is is used, and `notes` says so.
    Raises UserError for a device that is none.
    """

    def __init__(self, device: str | None = None, n_gpu: int = 1, seed: int = 0):
        self.seed = seed
        self.notes: list[str] = []
        self.device = self._choose(device, n_gpu)

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
        return model.to(self.device)

    def to_device(self, batch: Any) -> Any:
        """Tensors, modules, and lists, tuples, dicts or partials of them, moved to the device."""
        if isinstance(batch, torch.Tensor):
            return batch.to(self.device, non_blocking=True)
        if isinstance(batch, nn.Module):
            return batch.to(self.device)
        if isinstance(batch, functools.partial):
            return functools.partial(batch.func, *self.to_device(batch.args), **self.to_device(batch.keywords))
        if isinstance(batch, dict):
            return {key: self.to_device(value) for key, value in batch.items()}
        if isinstance(batch, list | tuple):
            moved = [self.to_device(value) for value in batch]
            return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
        return batch

    def backward(self, loss: torch.Tensor) -> None:
        """Add the loss's gradients to the parameters'."""
        loss.backward()

    def optimizer_step(self, optimizer: torch.optim.Optimizer, max_grad_norm: float | None = None) -> None:
        """Clip the gradients' common norm, let the optimizer use them, and forget them."""
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

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


def _numbers(device: str) -> list[int]:
    parts = device.removeprefix("cuda:").split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UserError(f'-d {device}: should be "cpu", a number like 0, or several like 2,3')
    return [int(part) for part in parts]
