"""The layers that give the outputs: a network's head, and auxiliary heads as in GoogLeNet."""

from torch import Tensor, nn

from utils.errors import UserError

Output = Tensor | tuple  # a tuple holds the main output first, then those of auxiliary heads
AUXILIARY = "aux", "AuxLogits."  # how the names of auxiliary heads begin in torchvision


def find_head(network: nn.Module) -> str:
    """The name of the last linear or convolutional layer. Raises UserError if there is none."""
    for name in find_heads(network):
        return name
    raise UserError(
        f"arch: {type(network).__name__} has no linear or convolutional layer to be its head"
    )


def find_heads(network: nn.Module) -> list[str]:
    """The names of the layers that give the outputs: the head, then the last of auxiliary heads."""
    kinds = nn.Linear | nn.Conv2d
    layers = [name for name, module in network.named_modules() if isinstance(module, kinds)]
    auxiliary = {name.partition(".")[0]: name for name in layers if name.startswith(AUXILIARY)}
    return list(dict.fromkeys([*layers[-1:], *auxiliary.values()]))


def main_output(output: Output) -> Tensor:
    """The network's output without those that auxiliary heads add in training.

    Raises UserError if it is neither a tensor nor a tuple that begins with one.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return output[0]
    raise UserError(f"arch: the network should return a tensor, not a {type(output).__name__}")


def auxiliary_outputs(output: Output) -> list[Tensor]:
    """The outputs of the auxiliary heads; empty for most networks."""
    if isinstance(output, Tensor):
        return []
    return [extra for extra in output[1:] if extra is not None]
