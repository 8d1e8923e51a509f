"""The structure of a pruned network as plain data: what pruning changed.

A structure is {"shapes": {tensor name: [built, now]}, "attributes": {module name: {key: value}}}.
`built` is the size that the constructor makes: a network pruned several times has one structure.
"""

import operator

from torch import Tensor, nn

from utils.errors import CheckpointError

PLAIN = bool, int, float, str, type(None)


def get_structure(network: nn.Module) -> dict | None:
    """What pruning changed of the network; None if it is as its constructor made it."""
    return getattr(network, "pruned_structure", None)


def describe(network: nn.Module) -> dict:
    """Each tensor's size, and all attributes that are plain data (out_channels, groups, ...)."""
    return {
        "shapes": {name: list(tensor.shape) for name, tensor in _tensors(network).items()},
        "attributes": {
            name: {key: value for key, value in vars(module).items() if _is_plain(key, value)}
            for name, module in network.named_modules()
        },
    }


def note_cut(network: nn.Module, before: dict) -> None:
    """Update the structure after channels were removed; `before` is `describe`'s earlier result."""
    structure, now = get_structure(network) or {"shapes": {}, "attributes": {}}, describe(network)
    shapes, attributes = dict(structure["shapes"]), dict(structure["attributes"])
    for name, shape in now["shapes"].items():
        if shape != (old := before["shapes"][name]):
            shapes[name] = [shapes.get(name, [old])[0], shape]
    for name, values in now["attributes"].items():
        old = before["attributes"][name].items()
        if changed := {key: value for key, value in values.items() if (key, value) not in old}:
            attributes[name] = attributes.get(name, {}) | changed
    network.pruned_structure = {"shapes": shapes, "attributes": attributes}


def resize(network: nn.Module, structure: dict | None) -> None:
    """Give a network the shape in `structure`; tensors that change size are filled with zeros.

    The network may be as its constructor made it, or pruned before. Only the axes that were cut
    must have their original size: the head may be built for another number of classes. Raises
    CheckpointError if the structure belongs to another network.
    """
    if structure is None:
        return
    tensors, modules = _tensors(network), dict(network.named_modules())
    cls, problem = type(network).__name__, "the checkpoint is of another, pruned network"
    earlier = (get_structure(network) or {"shapes": {}})["shapes"]
    resized: dict[int, Tensor] = {}  # a tensor that has two names stays one tensor
    for name, (built, now) in structure["shapes"].items():
        tensor, current = tensors.get(name), earlier.get(name, [built, built])[1]
        cut = [axis for axis, (old, new) in enumerate(zip(built, now, strict=False)) if old != new]
        fits = tensor is not None and tensor.ndim == len(built) == len(now)
        fits = fits and all(map(operator.ge, built, now))
        if not fits or any(tensor.shape[axis] != current[axis] for axis in cut):
            actual = "does not have it" if tensor is None else f"has {list(tensor.shape)}"
            raise CheckpointError(f"{problem}: its {name} was built as {built}, {cls} {actual}")
        if id(tensor) not in resized:
            size = [now[axis] if axis in cut else old for axis, old in enumerate(tensor.shape)]
            new, is_parameter = tensor.new_zeros(size), isinstance(tensor, nn.Parameter)
            resized[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if is_parameter else new
        module, _, key = name.rpartition(".")
        setattr(modules[module], key, resized[id(tensor)])
    for name, values in structure["attributes"].items():
        for key, value in values.items():
            if name not in modules or not _is_plain(key, vars(modules[name]).get(key, modules)):
                raise CheckpointError(f"{problem}: {cls} has no {name}.{key}")
            setattr(modules[name], key, value)
    network.pruned_structure = structure


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    named = network.named_parameters, network.named_buffers
    return {name: tensor for each in named for name, tensor in each(remove_duplicate=False)}


def _is_plain(key: str, value: object) -> bool:
    if key == "training" or key.startswith("_"):
        return False
    parts = value if isinstance(value, tuple | list) else [value]
    return all(isinstance(part, PLAIN) for part in parts)
