"""Whether a JSON value fits a type hint: pydantic decides, and says what would be right."""

import collections.abc
import contextlib
import json
import math
import numbers
import types
import typing
from collections.abc import Collection
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from typing_extensions import is_typeddict

from utils.config.lookup import did_you_mean
from utils.config.signature import Signature

TYPES = {"integer": "a whole number", "number": "a number", "string": "a text", "null": "null"}
TYPES |= {"boolean": "true or false", "object": "an object", "array": "a list"}
BOUNDS = {"exclusiveMinimum": "above", "minimum": "of at least"}
BOUNDS |= {"exclusiveMaximum": "below", "maximum": "at most"}


def coerce(value: object, hint: object) -> Any:
    """`value` as the type that `hint` asks for: lists become tuples or tensors if those are wanted.

    Raises pydantic's ValidationError, a ValueError.
    """
    adapter = _adapter(hint)
    if adapter is None:
        return value
    # strict, and by JSON's rules: 1 is a float and [1, 2] a tuple, but "1" is not a number
    coerced = adapter.validate_json(json.dumps(value), strict=True)
    return value if isinstance(coerced, collections.abc.Iterator) else coerced


def drop_nulls(arguments: dict, signature: Signature, offered: Collection[str]) -> dict:
    """The arguments without nulls for what the scripts offer, unless null is a value of its own."""
    nulls = {key for key in offered if key in arguments and arguments[key] is None}
    hints = {key: p.annotation for key, p in signature.parameters.items() if key in nulls}
    nulls -= {key for key, hint in hints.items() if not find_type_errors(key, None, hint)}
    return {key: value for key, value in arguments.items() if key not in nulls}


def find_type_errors(path: str, value: object, hint: object) -> list[str]:
    """What is wrong with the value of the key `path`, and what would be right."""
    try:
        coerce(value, hint)
    except ValidationError as error:
        wanted: dict[str, str] = {}
        for detail in error.errors(include_url=False):
            place, part = path, value
            with contextlib.suppress(LookupError, TypeError):  # the rest names members of unions
                for key in detail["loc"]:
                    part = (part if isinstance(part, dict | list) else {})[key]
                    place = f"{place}.{key}"
            if detail["type"] == "missing":
                wanted[f"{place}.{detail['loc'][-1]}"] = "missing"
            elif detail["type"] == "extra_forbidden":
                known = typing.get_type_hints(hint) if is_typeddict(hint) else {}
                wanted[place] = f"unknown key{did_you_mean(detail['loc'][-1], known)}"
            else:
                text = json.dumps(part, ensure_ascii=False)
                text = text if len(text) <= 60 else f"{text[:57]}..."
                message = detail["msg"].removeprefix("Input should be ")
                message = describe_schema(json_schema(hint)) if place == path else message
                if detail["type"] == "less_than" and detail["ctx"]["lt"] == 1:
                    message += " (0.01 is 1 %)"
                if detail["type"] == "string_type" and isinstance(part, int | float):
                    message += f", in quotes: {json.dumps(text)}"
                wanted[place] = f"{text} should be {message}"
        return [f"{place}: {message}" for place, message in wanted.items()]
    return []


def describe_schema(schema: dict) -> str:
    """A JSON Schema in words: "a whole number above 0 or null"."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(describe_schema, schema["anyOf"])))
    if choices := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return "one of " * (len(choices) > 1) + ", ".join(map(json.dumps, choices))
    bounds = [f"{word} {schema[key]:g}" for key, word in BOUNDS.items() if key in schema]
    words = TYPES.get(schema.get("type"), "another value")
    if examples := schema.get("examples"):
        words += f" like {' or '.join(map(json.dumps, examples))}"
    keys = schema.get("propertyNames")
    bounds = [f"whose keys are {describe_schema(keys)}"] if keys else bounds
    return f"{words} {' and '.join(bounds)}".strip()


def json_schema(hint: object) -> dict:
    """The JSON Schema of what fits `hint`; {} if anything does."""
    adapter = _adapter(hint)
    try:
        return adapter.json_schema() if adapter else {}
    except PydanticUserError:
        return {}


def find_infinite(value: object, path: str = "") -> list[str]:
    """Where a configuration holds NaN or infinity, which plain JSON cannot express."""
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{path}: {value} is not a finite number"]
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    return [e for key, part in items for e in find_infinite(part, f"{path}.{key}".lstrip("."))]


def _for_json(hint: object) -> object:
    """The hint with each tensor replaced by lists of numbers that become a tensor."""
    if hint is torch.Tensor:
        return Annotated[list[float] | list[list[float]], AfterValidator(torch.tensor)]
    if hint is numbers.Number:
        return int | float
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(_for_json, args))]  # noqa: UP007 (known only at run time)
    if origin in (list, tuple, collections.abc.Sequence) and args:
        return origin[tuple(map(_for_json, args))]
    return hint


def _adapter(hint: object) -> TypeAdapter | None:
    if hint is Any:
        return None
    try:
        # a TypedDict carries its own configuration and accepts no other
        config = None if is_typeddict(hint) else ConfigDict(arbitrary_types_allowed=True)
        return TypeAdapter(_for_json(hint), config=config)
    except (PydanticUserError, NameError, TypeError):  # a hint that no JSON value can fit
        return None
