"""The sections of a config that testing adds."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict  # pydantic accepts typing's only from Python 3.12 on


class HeatMap(TypedDict):
    """The section "heatmap": torchcam's method, and the layer to look at; null for the last one
    whose output has places."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 (the name is pydantic's)
    method: NotRequired[Literal["GradCAM", "GradCAMpp", "SmoothGradCAMpp", "XGradCAM", "LayerCAM"]]
    layer: NotRequired[str | None]


PLAIN = {
    "heatmap": HeatMap,
    "shown_names": dict[str, str],  # what classes are called in the page: {"NG": "scratched"}
}
PAGES = ("testing.md",)  # in docs/, about this folder
