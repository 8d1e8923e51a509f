"""Running statistics of batch norms: evaluation uses them instead of a batch's own."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from base.samples import count_samples

# Momentum times updates from which the running statistics are those of the network as it is now:
# the initial ones then weigh exp(-10).
ENOUGH = 10


def batch_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """Those that keep running statistics, by name."""
    named = network.named_modules()
    return {k: m for k, m in named if isinstance(m, _BatchNorm) and m.track_running_stats}


def unsettled(network: nn.Module, updates: int) -> list[str]:
    """The batch norms in training mode whose statistics still hold old values after `updates`.

    That is so with a small momentum: torchvision gives MobileNetV3 0.01, which needs a thousand.
    """
    return [
        name
        for name, norm in batch_norms(network).items()
        if norm.training
        and norm.momentum is not None
        and norm.momentum * min(updates, int(norm.num_batches_tracked)) < ENOUGH
    ]


@torch.no_grad()
def recompute_statistics(
    network: nn.Module, names: Iterable[str], forward: Callable[[Any], object], batches: Iterable
) -> dict[str, Tensor]:
    """Recompute the running statistics of the named batch norms; return the earlier ones.

    All batches weigh the same (Wu and Johnson, Rethinking "Batch" in BatchNorm, arXiv:2105.07576).
    The rest of the network is in evaluation mode, as when the statistics are used.

    Args:
        network: left in the mode it had
        names: of its batch norms
        forward: calls the network for a batch
        batches: inputs (N, ...), or whatever `forward` takes
    """
    norms = {name: network.get_submodule(name) for name in names}
    before = {f"{n}.{k}": b.clone() for n, norm in norms.items() for k, b in norm.named_buffers()}
    modes = {module: module.training for module in network.modules()}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    network.eval()
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all
        norm.train()
    waits = any(isinstance(norm, nn.SyncBatchNorm) for norm in norms.values())
    for batch in batches:
        # one sample has no variance, unless several processes make one of theirs
        if count_samples(batch) > 1 or waits:
            forward(batch)
    for name, norm in norms.items():
        norm.momentum = momenta[name]
        if not norm.num_batches_tracked:  # an auxiliary head, which evaluation does not use
            for key, buffer in norm.named_buffers():
                buffer.copy_(before[f"{name}.{key}"])
    for module, mode in modes.items():
        module.training = mode
    return before
