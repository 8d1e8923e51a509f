"""The layers that give the outputs: a network's head, and auxiliary heads as in GoogLeNet."""

from torch import Tensor, nn

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
