"""With a frozen backbone and no augmentation the head sees the same features in each epoch: compute them once."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from base import BaseDataLoader
from base.samples import collate
from utils.engine import Engine
from utils.networks import head_of, set_training_mode
from utils.randomness import draws_randomness, seeded


class Tail(nn.Module):
    """The last part of `network`, run on the features that the rest would give it; `unwrap` gives the network."""

    def __init__(self, network: nn.Module, name: str):
        super().__init__()
        self._orig_mod, self.name = network, name

    def forward(self, features: Tensor) -> Tensor:
        return self._orig_mod.get_submodule(self.name)(features)


class FeatureDataLoader(BaseDataLoader):
    """What a loader serves, with features in place of the inputs: the same samples in the same batches."""

    def __init__(self, original: BaseDataLoader, features: Tensor, targets: Tensor):
        self.stored = features, targets
        super().__init__(**original.settings | {"validation_split": 0, "num_workers": 0}, subset=original.subset)
        self.sampler.order = original.sampler.order
        self.classes, self.input, self.example = original.classes, original.input, original.example

    def build_dataset(self, subset: str, augment: bool) -> Dataset:
        return _Features(*self.stored)


class _Features(TensorDataset):
    """Served in whole batches."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return self[indices]


def reusable_tail(network: nn.Module, loader: BaseDataLoader, engine: Engine) -> str | None:
    """Name of the part that can be trained on stored features, or None where that would not be the same.

    That is the topmost module with the head in it. Asked of the network and the data themselves: whether samples or
    what the frozen part makes of them draw random numbers, and whether the tail's output is the network's.
    """
    name = head_of(network).partition(".")[0]
    samples = min(8, len(loader.dataset))
    first = loader.dataset.indices[:samples].tolist()
    if any(draws_randomness(lambda i=index: loader.samples[i]) for index in first):
        return None
    data = engine.to_device(collate(loader.dataset.__getitems__([(0, p, 0) for p in range(samples)]))[0])
    if not isinstance(data, Tensor):
        return None
    set_training_mode(network)
    with torch.no_grad():
        inputs = []
        for seed in range(2):
            with seeded(seed):
                inputs.append(_tail_input(network, name, data))
        one, two = inputs
        if not (isinstance(one, Tensor) and len(one) == samples and torch.equal(one, two)):
            return None
        network.eval()
        output = network.get_submodule(name)(one)
        return name if isinstance(output, Tensor) and torch.equal(output, network(data)) else None


@torch.no_grad()
def with_features(network: nn.Module, tail: str, loader: BaseDataLoader, engine: Engine) -> FeatureDataLoader:
    """The loader with the features of all its samples in memory, on the CPU."""
    network.eval()
    names = [(0, position, 0) for position in range(len(loader.dataset))]
    batches: Any = DataLoader(
        loader.dataset, loader.batch_size, sampler=names, num_workers=loader.num_workers, collate_fn=collate
    )
    parts = [(_tail_input(network, tail, engine.to_device(data)).cpu(), target) for data, target in batches]
    return FeatureDataLoader(loader, torch.cat([f for f, _ in parts]), torch.cat([t for _, t in parts]))


def _tail_input(network: nn.Module, name: str, data: Tensor) -> Tensor | None:
    seen: list[Tensor] = []
    handle = network.get_submodule(name).register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    try:
        network(data)
    finally:
        handle.remove()
    return seen[0] if len(seen) == 1 else None
