from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from utils.errors import UserError, first_line

COLUMNS = ["layer", "output", "parameters", "trainable", "multiply-adds"]


def summary(network: nn.Module, *inputs: Tensor) -> list[list[str]]:
    """The rows of a table of layers for a batch of `inputs` (N, ...), the network's arguments.

    Two levels of layers, with output shape, parameters and multiply-adds per sample. Runs the
    network once in evaluation mode, on the example's device. Raises UserError if it cannot take
    such input.
    """
    layers = {module: name for name, module in network.named_modules() if name.count(".") < 2}
    shapes: dict[str, list[int]] = {}

    def record_shape(module: nn.Module, _: tuple, output: object) -> None:
        if module in layers:
            main = output[0] if isinstance(output, tuple) else output
            shapes.setdefault(layers[module], list(getattr(main, "shape", ())[1:]))

    with register_module_forward_hook(record_shape):
        counts, _ = multiply_adds(network, *inputs)
    layers[network] = layers.pop(network)  # the whole network is the last row
    rows = [COLUMNS]
    for module, name in layers.items():
        sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
        if name in shapes and (sizes or not name):
            total, trainable = sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains)
            label = f"{'  ' * name.count('.')}{name} {type(module).__name__}" if name else "all"
            numbers = [f"{number:,}" for number in (total, trainable, counts.get(name, 0))]
            rows.append([label, "x".join(map(str, shapes[name])), *numbers])
    return rows


def multiply_adds(network: nn.Module, *inputs: Tensor) -> tuple[dict[str, int], Tensor]:
    """Multiply-adds per sample of `inputs` (N, ...) by layer, the total under ""; and the output.

    Half of what torch's FlopCounterMode counts, in evaluation mode. Raises UserError if the network
    cannot take such input.
    """
    from torch.utils.flop_counter import FlopCounterMode

    was_training, counter = network.training, FlopCounterMode(display=False)
    try:
        with plain_attention(), torch.no_grad(), counter:
            output = network.eval()(*inputs)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        size = ", ".join("x".join(map(str, part.shape[1:])) for part in inputs)
        problem = f"{type(network).__name__} cannot take input of {size}"
        raise UserError(f"arch: {problem}: {first_line(error)}") from error
    finally:
        network.train(was_training)
    prefix, flops = f"{type(network).__name__}.", counter.get_flop_counts().items()
    totals = {name.removeprefix(prefix): sum(counts.values()) for name, counts in flops}
    totals[""] = counter.get_total_flops()
    return {name: total // (2 * len(inputs[0])) for name, total in totals.items()}, output


def count(network: nn.Module, example: Tensor) -> dict[str, int]:
    """{"macs": multiply-adds per sample of `example` (N, ...), "parameters": how many}."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"macs": multiply_adds(network, example)[0][""], "parameters": parameters}


@contextmanager
def plain_attention() -> Iterator[None]:
    """Inside the `with` block attention runs in single steps, which can be counted and traced."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
