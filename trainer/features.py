"""With a frozen backbone and no augmentation the head sees the same features in each epoch.

So they are computed once, and the head trains on the stored features.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from base import BaseDataLoader
from base.samples import Batch, Key
from base.worker_loader import WorkerLoader
from model.freezing import set_training_mode
from model.heads import find_head
from utils.engine import distributed
from utils.engine.engine import Engine
from utils.engine.randomness import draws_randomness


class Tail(nn.Module):
    """The last part of `network`, called on the features that it gets there; see `unwrap`."""

    def __init__(self, network: nn.Module, name: str):
        super().__init__()
        self._orig_mod, self.name = network, name

    def forward(self, features: Tensor) -> Tensor:
        return self._orig_mod.get_submodule(self.name)(features)


class Features(TensorDataset):
    """The stored features and the targets."""

    deterministic = True

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return self[indices]  # a whole batch at once


def first_samples(loader: BaseDataLoader, count: int) -> Batch:
    """A batch of the first samples, at most `count`."""
    return loader.finish(loader.dataset.__getitems__(_keys(min(count, len(loader.dataset)))))


def reusable_tail(network: nn.Module, loader: BaseDataLoader, engine: Engine) -> str | None:
    """The name of the part that can train on stored features; None if that would change anything.

    That part is the topmost module with the head in it. It is tried out: neither the samples nor
    the frozen part may draw random numbers, and the part's output must be the network's.
    """
    name = find_head(network).partition(".")[0]
    first = loader.dataset.indices[:8].tolist()
    # a sample may depend on the others of its batch, or be missing
    if loader.dataset.collate_fn is not None or loader.dataset.offers.may_lack:
        return None
    if any(draws_randomness(partial(loader.samples.__getitem__, index)) for index in first):
        return None
    data = engine.to_device(first_samples(loader, 8)[0])
    if not isinstance(data, Tensor):
        return None
    set_training_mode(network)
    with torch.no_grad(), engine.seeded("features"):
        one, two = (_tail_input(network, name, data) for _ in range(2))
        if not (isinstance(one, Tensor) and len(one) == len(data) and torch.equal(one, two)):
            return None
        network.eval()
        output = network.get_submodule(name)(one)
        return name if isinstance(output, Tensor) and torch.equal(output, network(data)) else None


@torch.no_grad()
def with_features(
    network: nn.Module, tail: str, loader: BaseDataLoader, engine: Engine
) -> BaseDataLoader:
    """The loader with the features of all its samples in memory, on the CPU. On all processes: each
    computes a part of them. Draws no random numbers.
    """
    network.eval()
    keys, workers = _keys(len(loader.dataset)), loader.num_workers
    keys = keys[distributed.rank_slice(len(keys))]
    batches = WorkerLoader(loader.dataset, loader.batch_size, sampler=keys, num_workers=workers)
    with engine.seeded("features"):  # torch's loader draws a number for its workers
        parts = [
            (_tail_input(network, tail, engine.to_device(data)).cpu(), target.cpu())
            for data, target in map(loader.finish, batches)
        ]
    parts = [part for own in distributed.all_gather(parts) for part in own]
    dataset = Features(*map(torch.cat, zip(*parts, strict=True)))
    dataset.paths = loader.paths
    settings = loader.settings | {"validation_split": 0, "fold": None, "num_workers": 0}
    stored = BaseDataLoader(dataset, **settings, subset=loader.subset)
    stored.sampler.order = loader.sampler.order
    stored.classes, stored.input, stored.example = loader.classes, loader.input, loader.example
    stored.to(engine.device)
    return stored


def _keys(count: int) -> list[Key]:
    return [(0, position, 0) for position in range(count)]


def _tail_input(network: nn.Module, name: str, data: Tensor) -> Tensor | None:
    """What the network passes to the part; None if it calls the part several times, or never."""
    inputs: list[Tensor] = []
    part = network.get_submodule(name)
    with part.register_forward_pre_hook(lambda _, args: inputs.append(args[0])):
        network(data)
    return inputs[0] if len(inputs) == 1 else None
