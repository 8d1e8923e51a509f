"""Type hints with bounds, for the arguments a config can set: checked before anything is built."""

from typing import Annotated, Literal, NotRequired, Required  # pydantic takes Python's own only from 3.12 on

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

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (pydantic's name for it)
    match: Required[str]
    lr: NonNegativeFloat
    weight_decay: NonNegativeFloat
    momentum: NonNegativeFloat
    betas: tuple[float, float]


class Inspection(TypedDict):
    """The section "inspection": the class that must not be missed, and the share of it that may be."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
    target: str
    max_escape: NotRequired[Share]


class Machine(TypedDict):
    """The section "engine": how to compute. tf32 is float32 through a GPU's fast units, bf16 and fp16 mix in 16 bits.

    Of several processes: whether batch_size is that of all together or of each, whether the learning rate grows with
    the batches where it is that of each; torch's SyncBatchNorm, and find_unused_parameters of DistributedDataParallel.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
    precision: NotRequired[Literal["fp32", "tf32", "bf16", "fp16"]]
    compile: NotRequired[Literal["default", "reduce-overhead", "max-autotune"] | None]
    channels_last: NotRequired[bool]
    deterministic: NotRequired[bool]
    batch_size: NotRequired[Literal["global", "process"]]
    scale_lr: NotRequired[bool]
    sync_batchnorm: NotRequired[bool]
    find_unused_parameters: NotRequired[bool]


class HeatMap(TypedDict):
    """The section "heatmap": torchcam's method, and the layer it looks at; null for the last that has a place for it."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
    method: NotRequired[Literal["GradCAM", "GradCAMpp", "SmoothGradCAMpp", "XGradCAM", "LayerCAM"]]
    layer: NotRequired[str | None]


class Target(TypedDict):
    """What a pruned network should come to: one of the first six, and how latency is measured.

    macs, params and latency are shares of the original's, latency_ms milliseconds.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012
    channel_sparsity: NotRequired[OpenShare]
    macs: NotRequired[OpenShare]
    params: NotRequired[OpenShare]
    latency: NotRequired[OpenShare]
    latency_ms: NotRequired[PositiveFloat]
    max_accuracy_drop: NotRequired[OpenShare]
    threads: NotRequired[PositiveInt]
    batch_size: NotRequired[PositiveInt]
