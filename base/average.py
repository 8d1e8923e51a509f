"""The moving average of a network's weights, which is often better than the last ones."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from utils.engine.engine import unwrap


class MovingAverage:
    """The exponential moving average of a network's parameters and buffers (Polyak and Juditsky
    1992, doi:10.1137/0330046). Numbers that are not floats are the network's.

    As torch's AveragedModel, but no step waits for a GPU.

    Args:
        model: starts with its numbers
        decay: what the average keeps of itself in each step

    Attributes:
        module: a copy of the network, with the averaged numbers
        n_averaged: how often the network was added
    """

    def __init__(self, model: nn.Module, decay: float):
        self.module, self.decay, self.n_averaged = copy.deepcopy(unwrap(model)), decay, 0
        for module in self.module.modules():
            if isinstance(module, nn.RNNBase):  # cuDNN wants its weights in one piece
                module.flatten_parameters()

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Add the network as it is now."""
        averaged: list[Tensor] = []
        current: list[Tensor] = []
        for average, value in zip(_values(self.module), _values(unwrap(model)), strict=True):
            if self.n_averaged and average.is_floating_point():
                averaged.append(average)
                current.append(value)
            else:
                average.copy_(value)
        if averaged:
            torch._foreach_lerp_(averaged, current, 1 - self.decay)
        self.n_averaged += 1


def _values(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()
