"""The types of what a checkpoint holds, or the metadata of an exported file: anyone can write one.

What is missing here is checked by whoever uses it. Keys that nobody knows are allowed.
"""

import functools
from typing import Annotated, Any, NotRequired

import torch
from annotated_types import Gt, Len
from pydantic import AfterValidator, JsonValue, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError
from torch import Tensor
from typing_extensions import TypedDict

from utils.config.hints import NonNegativeInt, PositiveInt


def _dense(value: object) -> object:
    usual = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
    if not usual or value.is_quantized or value.is_nested:
        raise PydanticCustomError("tensor", "Input should be a usual tensor")
    return value


def _paired(value: dict) -> dict:
    if (value.get("mean") is None) != (value.get("std") is None):
        raise PydanticCustomError("pair", "Input should have mean and std, or neither")
    return value


Object = dict[str, Any]
Dense = Annotated[Any, AfterValidator(_dense)]
Weights = dict[str, Dense]


class Input(TypedDict):
    """Of the network: the shape of a sample, and how its values were made."""

    shape: list[NonNegativeInt]
    mean: NotRequired[list[float] | None]
    std: NotRequired[list[float] | None]
    range: NotRequired[list[float] | str | None]


class Origin(TypedDict, total=False):
    """See `utils.origin.origin`; files and reports also have the path of their checkpoint."""

    digest: str | None
    data: str | None
    seed: int | None
    versions: Object | None
    made_from: Object | None
    checkpoint: str


class Inspection(TypedDict):
    target: str
    threshold: float
    sure_threshold: NotRequired[float]
    temperature: NotRequired[Annotated[float, Gt(0)]]


class Novelty(TypedDict):
    """What is known of the validation samples, to find others that are unlike them."""

    means: NotRequired[Dense]
    directions: NotRequired[Dense]
    scales: NotRequired[Dense]
    rest: NotRequired[Annotated[float, Gt(0)]]
    limit: NotRequired[Annotated[float, Gt(0)]]
    rank: NotRequired[PositiveInt]
    samples: NotRequired[PositiveInt]
    appearance: NotRequired[list[Annotated[list[float], Len(5, 5)]]]
    labels: NotRequired[list[str]]


class Average(TypedDict):
    n_averaged: int
    state_dict: Weights


class Structure(TypedDict):
    """See `model.structure`."""

    shapes: dict[str, Annotated[list[list[NonNegativeInt]], Len(2, 2)]]  # built and now
    attributes: dict[str, Object]


class Optimizer(TypedDict):
    state: dict[int, Object]
    param_groups: list[Object]


class Monitor(TypedDict):
    rule: str
    best: float | None
    best_epoch: int
    waited: int


class Meters(TypedDict):
    count: NonNegativeInt
    sums: dict[str, float]
    objects: dict[str, Object]


class Trainer(TypedDict):
    """How far the run is."""

    step: NonNegativeInt
    monitor: Monitor
    processes: NotRequired[PositiveInt]
    generators: NotRequired[list[Any]]
    meters: NotRequired[Meters | None]
    running_statistics: NotRequired[Weights]
    pruning: NotRequired[Object]
    history: NotRequired[list[dict[str, float | str]]]


class Kept(TypedDict):
    parts: Object
    values: Object
    on_device: NotRequired[list[str]]


TYPES: Object = {
    "arch": str,
    "epoch": NonNegativeInt,
    "state_dict": Weights,
    "optimizer": Optimizer,
    "config": Object | None,
    "lr_scheduler": Object | None,
    "scaler": dict[str, float] | None,
    "ema": Average | None,
    "trainer": Trainer,
    "kept": Kept,
    "rng": Object,
    "structure": Structure | None,
    "classes": list[str] | None,
    "input": Annotated[Input, AfterValidator(_paired)] | None,
    "inspection": Inspection | None,
    "novelty": Novelty | None,
    "decided": Object | None,
    "versions": Object | None,
    "origin": Origin | None,
    "sessions": list[Object],
}


# Also what their types leave open can be written as JSON, as exported files keep it.
PLAIN = ("classes", "config", "input", "inspection", "origin", "sessions", "structure", "versions")


_adapter = functools.cache(TypeAdapter)  # making one takes longer than using it


def find_fault(contents: dict, types: Object) -> str | None:
    """What is wrong with the first value of another type than `types` says, with its place."""
    for key in sorted(contents.keys() & types.keys()):
        try:
            for hint in (types[key], JsonValue) if key in PLAIN else (types[key],):
                _adapter(hint).validate_python(contents[key], strict=True)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, (key, *fault["loc"])))
            return f"{place}: {fault['msg'].removeprefix('Input ')}"
    return None
