"""Type hints with bounds, for the arguments that a config can set: checked before anything is
built.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, NotRequired, Required

from annotated_types import Ge, Gt, Lt
from typing_extensions import TypedDict  # pydantic accepts typing's only from Python 3.12 on

PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]
OpenShare = Annotated[float, Gt(0), Lt(1)]
UNITS = {"s": 1, "min": 60, "h": 3600}  # of a duration
DURATION = r"^([1-9][0-9]*) ?(s|min|h)$"


class Like:
    """Makes a hint accept only texts that match a pattern, for example these.

    It stands for pydantic's Field, which --help must not load; pydantic asks for the methods.
    """

    def __init__(self, pattern: str, *examples: str):
        self.pattern, self.examples = pattern, examples

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable) -> dict:
        return handler(source) | {"pattern": self.pattern}

    def __get_pydantic_json_schema__(self, schema: dict, handler: Callable) -> dict:
        return handler(schema) | {"examples": list(self.examples)}


Duration = Annotated[str, Like(DURATION, "15min", "30s", "2h")]
# of what makes a network the best; which names are logged only the rehearsal knows
BestRule = Annotated[str, Like(r"^(off|(min|max) .+)$", "off", "min val_loss", "max val_accuracy")]


def seconds(duration: str) -> int:
    """The seconds of a duration: 900 of "15min"."""
    number, unit = re.match(DURATION, duration).groups()
    return int(number) * UNITS[unit]


class ParameterRule(TypedDict, total=False):
    """Options of parameters whose name matches a pattern: {"match": "^fc", "lr": 0.01}."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (pydantic's name for it)
    match: Required[str]
    lr: NonNegativeFloat
    weight_decay: NonNegativeFloat
    momentum: NonNegativeFloat
    betas: tuple[float, float]


class InspectionSettings(TypedDict):
    """The section "inspection": the class not to be missed, and the share of it that may be.

    max_escape is a share of the validation samples; max_escape_bound asks for the share that they
    leave possible, with this confidence (0.95). With max_overkill, the share of other samples that
    may be called so by mistake, a person looks at those in between.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
    target: str
    max_escape: NotRequired[Share]
    max_escape_bound: NotRequired[OpenShare]
    max_overkill: NotRequired[Share]
    confidence: NotRequired[OpenShare]


class EngineSettings(TypedDict, total=False):
    """The section "engine": how to compute.

    precision: tf32 is float32 through a GPU's fast units, bf16 and fp16 are mixed precision. With
    several processes: batch_size says whether the config's is that of all together ("global") or of
    each process, scale_lr whether the learning rate then grows with the batches; sync_batchnorm is
    torch's SyncBatchNorm, find_unused_parameters an option of DistributedDataParallel.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
    precision: Literal["fp32", "tf32", "bf16", "fp16"]
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None
    channels_last: bool
    deterministic: bool
    batch_size: Literal["global", "process"]
    scale_lr: bool
    sync_batchnorm: bool
    find_unused_parameters: bool
