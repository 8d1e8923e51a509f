from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from base.samples import count_samples
from utils.engine.engine import Tensors, map_tensors
from utils.errors import UserError, first_line

COLUMNS = ["layer", "output", "parameters", "trainable", "multiply-adds"]


def summary(network: nn.Module, *args: Tensors, **kwargs: Tensors) -> list[list[str]]:
    """The rows of a table of layers for a batch, the network's arguments.

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
        counts, _ = multiply_adds(network, *args, **kwargs)
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


def multiply_adds(
    network: nn.Module, *args: Tensors, **kwargs: Tensors
) -> tuple[dict[str, int], Tensors]:
    """Multiply-adds per sample of a batch, the network's arguments, by layer, the total under "";
    and the output.

    Half of what torch's FlopCounterMode counts, in evaluation mode. Raises UserError if the network
    cannot take such input.
    """
    from torch.utils.flop_counter import FlopCounterMode

    was_training, counter = network.training, FlopCounterMode(display=False)
    try:
        with plain_attention(), torch.no_grad(), counter:
            output = network.eval()(*args, **kwargs)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        shapes: list[str] = []
        map_tensors((args, kwargs), lambda part: shapes.append("x".join(map(str, part.shape[1:]))))
        problem = f"{type(network).__name__} cannot take input of {', '.join(shapes)}"
        raise UserError(f"arch: {problem}: {first_line(error)}") from error
    finally:
        network.train(was_training)
    prefix, flops = f"{type(network).__name__}.", counter.get_flop_counts().items()
    totals = {name.removeprefix(prefix): sum(counts.values()) for name, counts in flops}
    totals[""] = counter.get_total_flops()
    samples = count_samples((args, kwargs))
    return {name: total // (2 * samples) for name, total in totals.items()}, output


def count(network: nn.Module, *args: Tensors, **kwargs: Tensors) -> tuple[dict[str, int], Tensors]:
    """{"macs": multiply-adds per sample of a batch, "parameters": how many}; and the output."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    macs, output = multiply_adds(network, *args, **kwargs)
    return {"macs": macs[""], "parameters": parameters}, output


@contextmanager
def plain_attention() -> Iterator[None]:
    """Inside the `with` block attention runs in single steps, which can be counted and traced."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
