"""What torch-pruning cannot see by itself in some families of networks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

Parts = list[nn.Module | nn.Parameter]


def _all_parts(module: nn.Module) -> Parts:
    return [module, *module.parameters(recurse=False)]


# For a class and its subclasses: the parts of such a module that keep all their channels.
KEPT: dict[str, Callable[[nn.Module], Parts]] = {
    # torch-pruning cannot follow how their attention reshapes, so its output keeps its width,
    "torchvision.models.maxvit.RelativePositionalMultiHeadAttention": _all_parts,
    "torchvision.models.swin_transformer.ShiftedWindowAttention": _all_parts,
    "torchvision.models.swin_transformer.PatchMerging": _all_parts,
    "torchvision.models.swin_transformer.PatchMergingV2": _all_parts,
    # and so does what is added to that output.
    "torchvision.models.swin_transformer.SwinTransformerBlock": lambda m: [m.mlp[3]],
    "torchvision.models.swin_transformer.SwinTransformer": lambda m: [m.features[0]],
    # Its shuffle mixes two halves of the channels, so only layers inside a half can be narrowed.
    "torchvision.models.shufflenetv2.InvertedResidual": lambda m: [m.branch1, m.branch2[5:]],
}


def kept_parts(network: nn.Module) -> Parts:
    """The modules and parameters whose channels cannot be removed, for torch-pruning to ignore."""
    parts = []
    for module in network.modules():
        for name in _class_names(module) & KEPT.keys():
            parts += KEPT[name](module)
    return parts


def fix_attributes(network: nn.Module) -> None:
    """Update the attributes that forward() computes with, after channels were removed."""
    for module in network.modules():
        if "torchvision.models.vision_transformer.VisionTransformer" in _class_names(module):
            module.hidden_dim = module.conv_proj.out_channels


@contextmanager
def traceable() -> Iterator[None]:
    """Inside the `with` block ShuffleNet does not shuffle, which torch-pruning cannot trace."""
    from torchvision.models import shufflenetv2

    original, shufflenetv2.channel_shuffle = shufflenetv2.channel_shuffle, lambda x, groups: x
    try:
        yield
    finally:
        shufflenetv2.channel_shuffle = original


def _class_names(module: nn.Module) -> set[str]:
    return {f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__}
