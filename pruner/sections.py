"""What pruning adds to a config."""

from typing_extensions import TypedDict  # pydantic accepts typing's only from Python 3.12 on

from utils.config.hints import OpenShare, PositiveFloat, PositiveInt, Share
from utils.config.lookup import Source

SECTIONS = {
    "pruner": Source(
        "pruner.base_pruner.BasePruner", ("pruner",), given=("dotted",), functions=False
    )
}
EXTENDS = {"trainer": {"folders": ("pruner",), "given": ("pruner", "exporter")}}


class PruningTarget(TypedDict, total=False):
    """The aim of pruning, one of the first seven, and how latency is measured.

    macs, params and latency are shares of the original's, latency_ms is in milliseconds.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (the name is pydantic's)
    channel_sparsity: OpenShare
    macs: OpenShare
    params: OpenShare
    latency: OpenShare
    latency_ms: PositiveFloat
    max_accuracy_drop: OpenShare
    max_escape_drop: Share
    threads: PositiveInt
    batch_size: PositiveInt


PAGES = ("pruning.md",)  # in docs/, about this folder
