from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from utils.errors import UserError
from utils.networks import main_output, plain_attention


def summary(network: nn.Module, example: Tensor) -> tuple[str, Tensor]:
    """A table of the network's layers for a batch like `example` (N, ...): output shape, parameters, multiply-adds.

    Two levels deep, per sample; and the network's output. The network is run once in evaluation mode, on the example's
    device.
    Raises UserError where it cannot take such input.
    """
    shapes: dict[str, list[int]] = {}

    def note(name: str) -> Callable:
        def hook(module: nn.Module, given: tuple, output: Any) -> None:
            shapes.setdefault(name, _shape(output))

        return hook

    layers = {name: module for name, module in network.named_modules() if name and name.count(".") < 2}
    handles = [module.register_forward_hook(note(name)) for name, module in layers.items()]
    try:
        counts, output = multiply_adds(network, example)
    finally:
        for handle in handles:
            handle.remove()
    shapes[""] = _shape(output)
    rows = [("layer", "output", "parameters", "trainable", "multiply-adds")]
    for name, module in [*layers.items(), ("", network)]:
        if name in shapes and (name == "" or any(True for _ in module.parameters())):
            sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
            total, trainable = sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains)
            label = f"{'  ' * name.count('.')}{name} {type(module).__name__}" if name else "all"
            shape = "x".join(map(str, shapes[name]))
            rows.append((label, shape, f"{total:,}", f"{trainable:,}", f"{counts.get(name, 0):,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join([row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)])
        for row in rows
    ]
    return "\n".join(lines), output


def multiply_adds(network: nn.Module, example: Tensor) -> tuple[dict[str, int], Tensor]:
    """Multiply-adds for one sample of `example` (N, ...) in each layer, by its name, in all by ""; and the output.

    Half of what torch's FlopCounterMode counts, in evaluation mode. Raises UserError where the network cannot take it.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    was_training = network.training
    counter = FlopCounterMode(display=False)
    try:
        with plain_attention(), torch.no_grad(), counter:
            output = main_output(network.eval()(example))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        size = "x".join(map(str, example.shape[1:]))
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"arch: {type(network).__name__} cannot take input of {size}: {reason}") from error
    finally:
        network.train(was_training)
    prefix, each = f"{type(network).__name__}.", 2 * len(example)
    counts = {name.removeprefix(prefix): sum(kinds.values()) // each for name, kinds in counter.get_flop_counts().items()}
    return counts | {"": counter.get_total_flops() // each}, output


def _shape(output: Any) -> list[int]:
    output = main_output(output) if isinstance(output, Tensor | tuple) else output
    return list(output.shape[1:]) if isinstance(output, Tensor) else []


def count(network: nn.Module, example: Tensor) -> dict[str, int]:
    """{"macs", "parameters"}: multiply-adds for one sample of a batch like `example` (N, ...), and all parameters."""
    macs = multiply_adds(network, example)[0][""]
    return {"macs": macs, "parameters": sum(parameter.numel() for parameter in network.parameters())}
