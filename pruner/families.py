"""What torch-pruning cannot see by itself in some families of networks."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def kept_parts(network: nn.Module) -> list[nn.Module | nn.Parameter]:
    """The modules and parameters whose channels cannot be removed, for torch-pruning to ignore."""
    from torchvision.models import maxvit, shufflenetv2
    from torchvision.models import swin_transformer as swin

    attention = maxvit.RelativePositionalMultiHeadAttention, swin.ShiftedWindowAttention
    parts: list[nn.Module | nn.Parameter] = []
    for module in network.modules():
        # torch-pruning cannot follow how their attention reshapes, so its output keeps its width,
        if isinstance(module, (*attention, swin.PatchMerging, swin.PatchMergingV2)):
            parts += [module, *module.parameters(recurse=False)]
        # and so does what is added to that output.
        elif isinstance(module, swin.SwinTransformerBlock):
            parts.append(module.mlp[3])
        elif isinstance(module, swin.SwinTransformer):
            parts.append(module.features[0])
        # Its shuffle mixes two halves of the channels: only layers inside a half can be narrowed.
        elif isinstance(module, shufflenetv2.InvertedResidual):
            parts += [module.branch1, module.branch2[5:]]
    return parts


def fix_attributes(network: nn.Module) -> None:
    """Update the attributes that forward() computes with, after channels were removed."""
    from torchvision.models import VisionTransformer

    for module in network.modules():
        if isinstance(module, VisionTransformer):
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
