"""The layers that give the outputs: a network's head, and auxiliary heads as in GoogLeNet."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.module import register_module_forward_hook

from utils.errors import UserError

Output = Tensor | tuple  # a tuple holds the main output first, then those of auxiliary heads


def find_head(network: nn.Module) -> str:
    """The name of the last linear or convolutional layer. Raises UserError if there is none."""
    kinds = nn.Linear | nn.Conv2d
    layers = [name for name, module in network.named_modules() if isinstance(module, kinds)]
    if not layers:
        raise UserError(
            f"arch: {type(network).__name__} has no linear or convolutional layer to be its head"
        )
    return layers[-1]


def main_output(output: Output) -> Tensor:
    """The network's output without those that auxiliary heads add in training."""
    return output if isinstance(output, Tensor) else output[0]


def auxiliary_outputs(output: Output) -> list[Tensor]:
    """The outputs of the auxiliary heads; empty for most networks."""
    if isinstance(output, Tensor):
        return []
    return [extra for extra in output[1:] if extra is not None]


def run_with_auxiliary_heads(network: nn.Module, example: Tensor) -> Output:
    """Run the network in evaluation mode, auxiliary heads included.

    Only the outermost module is told that it trains: that is what makes it run the auxiliary heads.
    """
    was_training, network.training = network.training, True
    try:
        return network(example)
    finally:
        network.training = was_training


@contextmanager
def all_thawed(network: nn.Module) -> Iterator[None]:
    """Inside the `with` block all parameters require gradients: autograd skips frozen layers."""
    frozen = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    try:
        network.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def output_layers(network: nn.Module, example: Tensor) -> list[str]:
    """The names of the layers that produce the outputs, those of auxiliary heads included."""
    layers = {module: name for name, module in network.named_modules()}
    produced_by: dict[Node, str] = {}

    def record(module: nn.Module, _: tuple, output: Tensor) -> None:
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            produced_by[output.grad_fn] = layers[module]

    with all_thawed(network), register_module_forward_hook(record):
        output = run_with_auxiliary_heads(network, example)

    def last_layers(node: Node | None) -> Iterator[str]:
        if node in produced_by:
            yield produced_by[node]
        elif node is not None:
            for previous, _ in node.next_functions:
                yield from last_layers(previous)

    outputs = main_output(output), *auxiliary_outputs(output)
    return list(dict.fromkeys(name for part in outputs for name in last_layers(part.grad_fn)))
