"""The shape of a pruned network as plain data: what a cut changed, and how to give it to a network built anew.

A structure is {"shapes": {tensor's name: [built, now]}, "attributes": {module's name: {attribute: value now}}}. Built
are the sizes that the constructor makes, so that a network which was cut several times has one structure still.
"""

from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import CheckpointError

PLAIN = (bool, int, float, str, type(None))


def structure_of(network: nn.Module) -> dict | None:
    """What cuts have changed of the network; None of one that is as its constructor made it."""
    return getattr(network, "pruned_structure", None)


def describe(network: nn.Module) -> dict:
    """The sizes of all tensors, and all attributes that are plain data (out_channels, groups, hidden_dim, ...)."""
    return {
        "shapes": {name: list(tensor.shape) for name, tensor in _tensors(network).items()},
        "attributes": {
            name: {key: value for key, value in vars(module).items() if key != "training" and _is_plain(key, value)}
            for name, module in network.named_modules()
        },
    }


def note_cut(network: nn.Module, before: dict) -> None:
    """Bring the network's structure up to date after a cut, `before` which `describe` gave its second argument."""
    earlier, now = structure_of(network) or {"shapes": {}, "attributes": {}}, describe(network)
    shapes = dict(earlier["shapes"])
    for name, shape in now["shapes"].items():
        if shape != before["shapes"][name]:
            built = shapes[name][0] if name in shapes else before["shapes"][name]
            shapes[name] = [built, shape]
    attributes = {name: dict(values) for name, values in earlier["attributes"].items()}
    for name, values in now["attributes"].items():
        old = before["attributes"][name]
        if changed := {key: value for key, value in values.items() if key not in old or old[key] != value}:
            attributes.setdefault(name, {}).update(changed)
    network.pruned_structure = {"shapes": shapes, "attributes": attributes}


def resize(network: nn.Module, structure: dict | None) -> None:
    """Give a network, as its constructor or an earlier cut made it, the shape in `structure`. What is cut
    holds no values then.

    Of each tensor only the axes that were cut need to be as they were, so that the head may be built for other
    classes. Raises CheckpointError where the structure belongs to another network.
    """
    if structure is None:
        return
    tensors, modules = _tensors(network), dict(network.named_modules())
    earlier = (structure_of(network) or {"shapes": {}})["shapes"]
    made: dict[int, Tensor] = {}  # a tensor that has two names stays one
    for name, (built, now) in structure["shapes"].items():
        path, _, key = name.rpartition(".")
        tensor = tensors.get(name)
        cut = [axis for axis, (old, new) in enumerate(zip(built, now, strict=True)) if old != new]
        here = earlier[name][1] if name in earlier else built
        if tensor is None or tensor.ndim != len(built) or any(tensor.shape[axis] != here[axis] for axis in cut):
            found = "nothing" if tensor is None else f"one of {list(tensor.shape)}"
            raise CheckpointError(
                f"the checkpoint is of another network, pruned: {type(network).__name__} has {found} where that has "
                f"{name} of {built}"
            )
        if id(tensor) not in made:
            size = [now[axis] if axis in cut else length for axis, length in enumerate(tensor.shape)]
            new = torch.zeros(size, dtype=tensor.dtype, device=tensor.device)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(new, requires_grad=tensor.requires_grad) if is_parameter else new
        setattr(modules[path], key, made[id(tensor)])
    for name, values in structure["attributes"].items():
        for key, value in values.items():
            if name not in modules or key not in vars(modules[name]):
                raise CheckpointError(f"the checkpoint is of another network, pruned: nothing here is called {name}.{key}")
            setattr(modules[name], key, value)
    network.pruned_structure = structure


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    named = (network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False))
    return {name: tensor for pairs in named for name, tensor in pairs}


def _is_plain(key: str, value: Any) -> bool:
    if key.startswith("_"):
        return False
    return isinstance(value, PLAIN) or (isinstance(value, tuple | list) and all(isinstance(v, PLAIN) for v in value))
