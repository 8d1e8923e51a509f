"""What a network takes and returns, as a file has it: a list of named tensors.

Arguments and outputs may be tensors, or tuples, lists, dicts and dataclasses of them, and nest. A
tensor's place is the way to it: ("batch", "tokens") for the argument `batch` of forward().
"""

import dataclasses
import inspect
import re
from collections import namedtuple
from collections.abc import Collection, Iterator

import numpy as np
from torch import Tensor, nn

from exporter.onnx_file import Signature
from utils.engine.engine import Call, Tensors
from utils.errors import RunError, UserError

Place = tuple[str | int, ...]
BATCH = "batch"


def build_signature(network: nn.Module, call: Call, output: Tensors) -> Signature:
    """The signature of a network, from its output for a call; without the shapes."""
    parameters = inspect.signature(network.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    inputs = _named(leaves(_bind(names, *call)), "input")
    outputs = iter(_named(leaves(output), "output", inputs))
    return {"parameters": names, "inputs": inputs, "result": _describe(output, outputs)}


def find_shapes(batches: list[dict[str, np.ndarray]], counts: list[int]) -> dict[str, list]:
    """The shape of each input; an axis whose size differs between these batches has a name instead.

    Axes that always have the same size share it. `counts` are the samples in the batches. Raises
    RunError if an input has more axes in one batch than in another.
    """
    names, shapes = {tuple(counts): BATCH}, {}
    for key in batches[0]:
        each = [batch[key].shape for batch in batches]
        if len(set(map(len, each))) > 1:
            raise RunError(f"the network's input {key} has not the same axes in every batch")
        axes = enumerate(zip(*each, strict=True))
        shapes[key] = [
            sizes[0] if len(set(sizes)) == 1 else names.setdefault(sizes, f"{key}_axis{axis}")
            for axis, sizes in axes
        ]
    return shapes


def flatten(signature: Signature, args: tuple, kwargs: dict[str, Tensors], file: str) -> dict:
    """The tensors of a call, by their names in the file. Raises UserError if it takes others."""
    tensors = dict(leaves(_bind(signature["parameters"], args, kwargs)))
    places = {name: tuple(place) for name, place in signature["inputs"].items()}
    if len(places) == len(tensors) == 1:
        return dict(zip(places, tensors.values(), strict=True))
    if set(places.values()) != set(tensors):
        given = ", ".join("_".join(map(str, place)) for place in tensors)
        raise UserError(f"{file} takes {', '.join(places)}, but the task passes {given}")
    return {name: tensors[place] for name, place in places.items()}


def leaves(value: Tensors, place: Place = ()) -> Iterator[tuple[Place, Tensor]]:
    """The tensors in arguments or outputs and their places, in the order of `map_tensors`."""
    if isinstance(value, Tensor):
        yield place, value
    for key, part in _parts(value)[1]:
        yield from leaves(part, (*place, key))


def output_names(result: Tensors) -> list[str]:
    """The names in a signature's "result"."""
    if isinstance(result, str):
        return [result]
    kind, content = result
    return [] if kind == "value" else [n for _, part in content for n in output_names(part)]


def rebuild(result: Tensors, tensors: dict[str, Tensor]) -> Tensors:
    """A network's output from its tensors; what had attributes becomes a namedtuple."""
    if isinstance(result, str):
        return tensors[result]
    kind, content = result
    if kind == "value":
        return content
    parts = {key: rebuild(part, tensors) for key, part in content}
    if kind == "fields":
        return namedtuple("Output", parts)(**parts)
    return tuple(parts.values()) if kind == "tuple" else parts


def _bind(
    parameters: list[str], args: tuple, kwargs: dict[str, Tensors]
) -> dict[str | int, Tensors]:
    names = [*parameters, *range(len(parameters), len(args))]
    return dict(zip(names, args, strict=False)) | kwargs


def _parts(value: Tensors) -> tuple[str, list[tuple[str | int, Tensors]]]:
    """The kind of a structure, and its parts by key."""
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return "tuple", list(enumerate(value))
    if isinstance(value, dict) and not dataclasses.is_dataclass(value):
        return "dict", list(value.items())
    is_dataclass = dataclasses.is_dataclass(value) and not isinstance(value, type)
    names = [field.name for field in dataclasses.fields(value)] if is_dataclass else ()
    return "fields", [(name, getattr(value, name)) for name in getattr(value, "_fields", names)]


def _describe(value: Tensors, names: Iterator[str]) -> Tensors:
    """The structure as JSON: a tensor's name, [kind, [[key, part], ...]] or ["value", constant]."""
    if isinstance(value, Tensor):
        return next(names)
    kind, parts = _parts(value)
    if parts:
        return [kind, [[key, _describe(part, names)] for key, part in parts]]
    return ["value", value if isinstance(value, str | int | float) else None]


def _named(
    tensors: Iterator[tuple[Place, Tensor]], whole: str, taken: Collection[str] = ()
) -> dict[str, Place]:
    """A name for each place: the way to it, without what is common to all; `whole` if it is one."""
    places = ways = [place for place, _ in tensors]
    if len(places) == 1:
        return {whole: places[0]}
    while len({way[0] for way in ways}) == 1:
        ways = [way[1:] for way in ways]
    ways = [way if isinstance(way[0], str) else (whole, *way) for way in ways]
    names = [re.sub(r"\W", "_", "_".join(map(str, way))) for way in ways]
    names = [f"{whole}_{name}" if name in taken else name for name in names]
    return dict(zip(names, places, strict=True))
