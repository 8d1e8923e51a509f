"""What of a trainer and its task a checkpoint keeps beside the network: found, not registered."""

import collections
import functools
import inspect
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from utils.checkpoint import load_into
from utils.engine.engine import Engine, Running, map_tensors
from utils.errors import CheckpointError, RunError

PLAIN = (type(None), bool, int, float, str, Tensor)
LARGEST = 2**20  # bytes of an array that are looked through for a change


class Stateful(Protocol):
    """An object with a state of its own: a network, an optimizer, a schedule."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> object: ...


class Kept:
    """The parts of a trainer and a task, and what else changes in them while they train.

    A part is an attribute with `state_dict` and `load_state_dict`, or a list, tuple or dict of
    such. Of the other attributes those are kept whose value is not the first one any more.

    Args:
        owners: by name; each has a tuple `not_kept` of attributes to ignore
        engine: loads the states of optimizers, and knows the device
    """

    def __init__(self, owners: dict[str, object], engine: Engine):
        self.owners, self.engine = owners, engine
        self.network: nn.Module | None = None
        self.first = {name: _fingerprint(value) for name, value in self._find()[1].items()}

    def watch(self, network: nn.Module) -> None:
        """From now on, keep also the numbers that change in the modules of `network`."""
        self.network = network
        self.first |= {name: _fingerprint(value) for name, value in self._numbers().items()}

    def state_dict(self) -> dict[str, dict]:
        """{"parts": their states, "values": what has changed}, by "owner.attribute"; "on_device":
        the names of values with tensors on a GPU, as checkpoints are loaded on the CPU.

        Raises RunError for a change that plain data cannot hold.
        """
        changed, (parts, values) = {}, self._find()
        for name, value in values.items():
            if _fingerprint(value) == self.first.get(name, self):
                continue
            value = value.item() if isinstance(value, np.generic) else value
            changed[name] = map_tensors(value, lambda part: part.detach())
            if not is_plain(changed[name]):
                raise RunError(
                    f"{name}: a checkpoint cannot keep this {type(value).__name__}, which changes "
                    "in training: a resumed run would be another one. Make it numbers or tensors, "
                    "give it state_dict and load_state_dict, or name it in not_kept"
                )
        state = {"parts": {k: part.state_dict() for k, part in parts.items()}, "values": changed}
        there = [name for name, value in changed.items() if _is_on_device(value)]
        return state | ({"on_device": there} if there else {})

    def load_state_dict(self, state: dict[str, dict]) -> None:
        """Raises CheckpointError if a part is missing or does not fit."""
        for name, part in self._find()[0].items():
            if name not in state["parts"]:
                raise CheckpointError(f"the checkpoint lacks the state of {name}")
            if isinstance(part, Optimizer):
                self.engine.load_optimizer(part, state["parts"][name])
            elif isinstance(part, nn.Module | Running):
                load_into(part, state["parts"][name], f"the checkpoint's {name}")
            else:
                part.load_state_dict(state["parts"][name])
        numbers = self._numbers()
        for name, value in state["values"].items():
            if name in state.get("on_device", ()):
                value = self.engine.to_device(value)
            owner, _, attribute = name.partition(".")
            if name in numbers:
                module, _, attribute = attribute.rpartition(".")
                setattr(self.network.get_submodule(module), attribute, value)
            elif self._may_keep(owner, attribute):
                before = getattr(self.owners[owner], attribute, None)
                setattr(self.owners[owner], attribute, _restored(before, value))

    def _may_keep(self, owner: str, name: str) -> bool:
        # anyone can write a checkpoint
        part = self.owners.get(owner)
        is_method = callable(getattr(part, name, None))
        return part is not None and name not in part.not_kept and not is_method

    def _find(self) -> tuple[dict[str, Stateful], dict[str, object]]:
        """The parts, and the values of all other attributes."""
        parts, values = {}, self._numbers()
        for owner, part in self.owners.items():
            for name, value in vars(part).items():
                if name in part.not_kept:
                    continue
                entries = _entries(f"{owner}.{name}", value)
                found = {k: entry for k, entry in entries.items() if _has_state(entry)}
                parts |= {k: entry for k, entry in found.items() if not _is_fixed(entry)}
                if not found:
                    values[f"{owner}.{name}"] = value
        return parts, values

    def _numbers(self) -> dict[str, object]:
        """Numbers and texts that the network's modules store, beside parameters and buffers."""
        modules = () if self.network is None else self.network.named_modules()
        return {
            ".".join(filter(None, ("network", name, attribute))): value
            for name, module in modules
            for attribute, value in vars(module).items()
            if type(value) in (int, float, bool, str)
            and not attribute.startswith("_")
            and attribute not in ("training", "takes_channels_last")
        }


def _entries(name: str, value: object) -> dict[str, object]:
    """A value, or the values in a collection, each with its place in it, by dotted name."""
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        return {f"{name}.{key}": part for key, part in value.items()}
    return {name: value}


def _has_state(value: object) -> bool:
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def _is_fixed(part: object) -> bool:
    """Whether this is one of torch's losses, which hold nothing but their arguments."""
    return type(part).__module__ == "torch.nn.modules.loss"


def _restored(before: object, value: object) -> object:
    """The kept value, in the tensors that are there: an optimizer knows a parameter itself."""
    if isinstance(before, Tensor) and isinstance(value, Tensor):
        if before.shape != value.shape:
            return value.to(before.device)
        before.data.copy_(value)
        return before
    if isinstance(before, list) and isinstance(value, list) and len(before) == len(value):
        return [_restored(*pair) for pair in zip(before, value, strict=True)]
    if isinstance(before, dict) and isinstance(value, dict):
        return {key: _restored(before.get(key), part) for key, part in value.items()}
    return value


def _is_on_device(value: object) -> bool:
    devices: list[str] = []
    map_tensors(value, lambda part: devices.append(part.device.type))
    return any(kind != "cpu" for kind in devices)


def is_plain(value: object) -> bool:
    """Whether torch.load reads the value again with weights_only=True."""
    if type(value) is dict:
        value = [*value, *value.values()]
    if type(value) in (list, tuple):
        return all(map(is_plain, value))
    return type(value) in PLAIN


def _fingerprint(value: object, seen: tuple = ()) -> object:
    """Something that is not equal any more once the value has changed."""
    if isinstance(value, nn.Parameter | collections.abc.Iterator):
        return object()  # an optimizer's kernels, or who reads it, change it unseen
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, np.ndarray) and value.nbytes <= LARGEST:
        return value.tobytes()
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    fixed = (type, functools.partial, DataLoader, Dataset, nn.Module)
    if id(value) in seen or isinstance(value, fixed) or inspect.isroutine(value):
        return id(value)
    seen = (*seen, id(value))
    if isinstance(value, dict | list | tuple | set | frozenset | collections.deque):
        parts = value.items() if isinstance(value, dict) else value
        return type(value), [_fingerprint(part, seen) for part in parts]
    return id(value), _fingerprint(getattr(value, "__dict__", {}), seen)
