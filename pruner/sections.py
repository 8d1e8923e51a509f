"""What pruning adds to a config."""

from typing import NotRequired

from typing_extensions import TypedDict  # pydantic accepts typing's only from Python 3.12 on

from utils.config.hints import OpenShare, PositiveFloat, PositiveInt
from utils.config.lookup import Source

SECTIONS = {"pruner": Source("pruner.base_pruner.BasePruner", ("pruner",), functions=False)}
EXTENDS = {"trainer": {"folders": ("pruner",), "given": ("pruner", "exporter")}}


class PruningTarget(TypedDict):
    """The aim of pruning, one of the first six, and how latency is measured.

    macs, params and latency are shares of the original's, latency_ms is in milliseconds.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (the name is pydantic's)
    channel_sparsity: NotRequired[OpenShare]
    macs: NotRequired[OpenShare]
    params: NotRequired[OpenShare]
    latency: NotRequired[OpenShare]
    latency_ms: NotRequired[PositiveFloat]
    max_accuracy_drop: NotRequired[OpenShare]
    threads: NotRequired[PositiveInt]
    batch_size: NotRequired[PositiveInt]
