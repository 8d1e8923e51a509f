"""Type hints with bounds, for the arguments a config can set: checked before anything is built."""

from typing import (
    Annotated,
    Required,  # pydantic wants these before Python 3.12
)

from annotated_types import Ge, Gt, Lt
from typing_extensions import TypedDict

PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]
OpenShare = Annotated[float, Gt(0), Lt(1)]


class ParameterRule(TypedDict, total=False):
    """Options for the parameters whose name matches a regular expression: {"match": "^fc", "lr": 0.01}."""

    match: Required[str]
    lr: NonNegativeFloat
    weight_decay: NonNegativeFloat
    momentum: NonNegativeFloat
    betas: tuple[float, float]


ParameterRule.__pydantic_config__ = {"extra": "forbid"}
