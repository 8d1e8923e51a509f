"""Does a JSON value fit a type hint? pydantic's answer, in words for people."""

import collections.abc
import json
import math
import numbers
import types
import typing
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from typing_extensions import is_typeddict

BOUNDS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}


def fit(value: Any, hint: Any) -> Any:
    """`value` as the type that `hint` asks for (lists become tuples or tensors where those are wanted).

    Raises ValueError that says what would be right.
    """
    adapter = _adapter(hint)
    if adapter is None:
        return value
    try:
        # strict, and by JSON's rules: 1 is a float and [1, 2] a tuple, but "1" is no number and true no integer
        fitted = adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise ValueError(f"{_shortened(value)} should be {words(hint)}") from error
    return value if isinstance(fitted, collections.abc.Iterator) else fitted


def json_schema(hint: Any) -> dict:
    """The JSON Schema of what fits `hint`; {} where anything may."""
    adapter = _adapter(hint)
    try:
        return adapter.json_schema() if adapter else {}
    except PydanticUserError:
        return {}


def words(hint: Any) -> str:
    """`float | None` -> "a number or null"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        bounds = [f"{said} {getattr(b, key):g}" for b in args[1:] for key, said in BOUNDS.items() if hasattr(b, key)]
        return " ".join([words(args[0]), " and ".join(bounds)]).strip()
    if origin in (typing.NotRequired, typing.Required):
        return words(args[0])
    if origin in (typing.Union, types.UnionType):
        # "a whole number or a number" says no more than "a number", and few give a number as a tensor
        said = dict.fromkeys(words(arg) for arg in args if float not in args or not (arg is int or _is_tensor(arg)))
        return " or ".join(said)
    if origin is dict and args and typing.get_origin(args[0]) is typing.Literal:
        return f"an object whose keys are {words(args[0])}"
    if origin is typing.Literal:
        return "one of " + ", ".join(json.dumps(arg) for arg in args)
    if origin in (list, tuple, set, collections.abc.Sequence, collections.abc.Iterable):
        if origin is tuple and ... not in args:
            return f"[{', '.join(map(words, args))}]"
        return "a list of " + " or ".join(words(arg) for arg in args if arg is not ...) if args else "a list"
    if is_typeddict(hint):
        keys = typing.get_type_hints(hint, include_extras=True).items()
        return f"an object of {', '.join(f'{key} ({words(value)})' for key, value in keys)}"
    plain = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "an object"}
    plain |= {list: "a list", tuple: "a list", collections.abc.Sequence: "a list"}
    plain |= {type(None): "null", numbers.Number: "a number"}
    if _is_tensor(hint):
        return "a list of numbers"
    return plain.get(origin or hint, getattr(hint, "__name__", str(hint)))


def odd_numbers(value: Any, path: str) -> list[str]:
    """Where a configuration holds NaN or infinity, which plain JSON cannot carry."""
    if isinstance(value, dict):
        return [f for k, v in value.items() for f in odd_numbers(v, f"{path}.{k}" if path else str(k))]
    if isinstance(value, list):
        return [f for i, v in enumerate(value) for f in odd_numbers(v, f"{path}.{i}")]
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{path}: {value} is not a finite number"]
    return []


def _shortened(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_tensor(hint: Any) -> bool:
    return getattr(hint, "__module__", None) == "torch" and getattr(hint, "__name__", None) == "Tensor"


def _to_tensor(value: Any) -> Any:
    import torch

    return torch.tensor(value, dtype=torch.float32)


def _for_json(hint: Any) -> Any:
    """The hint with tensors replaced by lists of numbers that become tensors: JSON has no other way to give one."""
    if _is_tensor(hint):
        return Annotated[list[float] | list[list[float]], AfterValidator(_to_tensor)]
    if hint is numbers.Number:
        return int | float
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(_for_json(arg) for arg in args)]  # noqa: UP007 (the members are only known now)
    if origin in (list, collections.abc.Sequence) and args:
        return origin[_for_json(args[0])]
    if origin is tuple and args:
        return tuple[tuple(_for_json(arg) for arg in args)]
    return hint


def _adapter(hint: Any) -> TypeAdapter | None:
    if hint is Any:
        return None
    try:
        # a TypedDict carries its own configuration, and takes no other
        config = None if is_typeddict(hint) else ConfigDict(arbitrary_types_allowed=True)
        return TypeAdapter(_for_json(hint), config=config)
    except (PydanticUserError, NameError, TypeError):  # a hint that no JSON value is meant for
        return None
