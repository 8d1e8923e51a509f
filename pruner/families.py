"""What torch-pruning cannot see in some families of networks, told to it: one class for each family."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

from torch import nn


class Family:
    """By default a module of this family needs no help."""

    def types(self) -> tuple[type, ...]:
        """The modules that the rules are for."""
        raise NotImplementedError

    def kept(self, module: Any) -> list[nn.Module | nn.Parameter]:
        """Parts of the module of which no channels are to be removed."""
        return []

    def divided(self, module: Any) -> dict[nn.Module, int]:
        """Parts of it whose channels come in so many equal shares, which must stay equal."""
        return {}

    def traced(self, network: nn.Module) -> AbstractContextManager:
        """In force while the network is followed."""
        return nullcontext()

    def mend(self, module: Any) -> None:
        """After a cut: attributes that the module computes with."""


class Attention(Family):
    """torch's attention: as many channels for each head as for the others."""

    def types(self):
        return (nn.MultiheadAttention,)

    def divided(self, module):
        return {module: module.num_heads}


class VisionTransformer(Family):
    def types(self):
        from torchvision.models import VisionTransformer

        return (VisionTransformer,)

    def mend(self, module):
        module.hidden_dim = module.conv_proj.out_channels


class WindowAttention(Family):
    """Swin's and MaxViT's attention reshapes in ways that cannot be followed: what it passes on keeps its width."""

    def types(self):
        from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
        from torchvision.models.swin_transformer import PatchMerging, PatchMergingV2, ShiftedWindowAttention

        return RelativePositionalMultiHeadAttention, ShiftedWindowAttention, PatchMerging, PatchMergingV2

    def kept(self, module):
        return [*module.modules(), *module.parameters(recurse=False)]


class SwinBlock(Family):
    """In Swin everything that is added to what the attention passes on: a block's last layer, the first convolution."""

    def types(self):
        from torchvision.models import SwinTransformer
        from torchvision.models.swin_transformer import SwinTransformerBlock

        return SwinTransformer, SwinTransformerBlock

    def kept(self, module):
        return list((module.mlp[3] if hasattr(module, "mlp") else module.features[0]).modules())


class ShuffleNet(Family):
    """The shuffle mixes two halves of the channels, which therefore keep their width; what lies within a half need not."""

    def types(self):
        from torchvision.models.shufflenetv2 import InvertedResidual

        return (InvertedResidual,)

    def kept(self, module):
        return [part for branch in (module.branch1, module.branch2[5:]) for part in branch.modules()]

    def traced(self, network):
        return patch("torchvision.models.shufflenetv2.channel_shuffle", lambda x, groups: x)


FAMILIES = (Attention(), VisionTransformer(), WindowAttention(), SwinBlock(), ShuffleNet())
