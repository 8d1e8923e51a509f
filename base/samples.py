"""Which samples a loader serves, in which order, and each with which random numbers."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler, default_collate

from utils import distributed
from utils.errors import UserError
from utils.randomness import generator_of, seeded, stratified_choice


class Samples(Dataset):
    """One subset's samples, each drawn with random numbers of its own.

    An item is named (epoch, position, how often it came in the epoch before): what a worker draws depends on nothing
    but that and the seed.
    """

    def __init__(self, build: Callable, subset: str, training: bool, validation_split: int | float, seed: int):
        self.build, self.subset, self.training = build, subset, training
        self.validation_split, self.seed = validation_split, seed

    @functools.cached_property
    def whole(self) -> Dataset:
        cut_from_train = self.subset == "val" and self.validation_split
        build, self.build = self.build, None  # a method of the loader: in a cycle with it, its workers end late
        return build("train" if cut_from_train else self.subset, self.training)

    @functools.cached_property
    def indices(self) -> np.ndarray:
        count = len(self.whole)
        if count == 0:
            raise UserError(f"there are no samples for {self.subset}")
        if self.subset == "test" or not self.validation_split:
            return np.arange(count)
        size = self.validation_split if isinstance(self.validation_split, int) else round(count * self.validation_split)
        if not 0 < size < count:
            raise UserError(f"validation_split {self.validation_split} of {count} samples leaves a part empty")
        held_out = stratified_choice(getattr(self.whole, "targets", None), count, size, self.seed)
        return held_out if self.subset == "val" else np.setdiff1d(np.arange(count), held_out)

    def __len__(self) -> int:
        return len(self.indices)

    def __getstate__(self) -> dict:
        # Where workers are spawned they get a copy, which should not drag the whole loader along.
        return {"whole": self.whole, "indices": self.indices, **vars(self)}

    def __getitem__(self, name: tuple[int, int, int]) -> Any:
        epoch, position, repeat = name
        index = int(self.indices[position])
        with self._seeded(epoch, index, repeat):
            return self.whole[index]

    def __getitems__(self, names: list[tuple[int, int, int]]) -> Any:
        epochs, positions, repeats = zip(*names, strict=True)
        indices = self.indices[list(positions)].tolist()
        whole_batch = getattr(self.whole, "__getitems__", None)
        draw, together = (getattr(self.whole, name, None) for name in ("draw", "together"))
        with self._seeded(epochs[0], indices[0], repeats[0]) as seed_anew:
            if whole_batch:
                return whole_batch(indices)
            drawn = []
            for parts in zip(epochs, indices, repeats, strict=True):
                seed_anew(*self._seed(*parts))
                drawn.append((draw or self.whole.__getitem__)(parts[1]))
        return together(drawn) if together else drawn

    def _seed(self, epoch: int, index: int, repeat: int) -> tuple[int | str, ...]:
        return self.seed, self.subset, epoch, index, *([repeat] if repeat else [])

    def _seeded(self, *parts: int) -> AbstractContextManager:
        draws_nothing = getattr(self.whole, "draws_nothing", False)
        return contextlib.nullcontext(lambda *parts: None) if draws_nothing else seeded(*self._seed(*parts))


class EpochSampler(Sampler):
    """Names samples (epoch, position) in the `order` of the epoch, without the first `skip` batches.

    Of each batch it names those that are this process's, so that names, and all that follows from them, do not depend
    on how many processes there are. In training it names one where none is.
    """

    def __init__(self, samples: Samples, batch_size: int, shuffle: bool, drop_last: bool):
        self.samples, self.batch_size, self.shuffle, self.drop_last = samples, batch_size, shuffle, drop_last
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return sum(len(self._own(number)) for number in range(self.batches()))

    def batches(self) -> int:
        """Batches in a pass, of all processes together."""
        return (len(self.samples) if self.drop_last else len(self.samples) + self.batch_size - 1) // self.batch_size

    def size(self, number: int) -> int:
        """Samples in that batch of a pass, of all processes together."""
        return min(self.batch_size, len(self.samples) - number * self.batch_size)

    @property
    def balanced(self) -> bool:
        return getattr(self.samples.whole, "balanced", False)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        skip, self.skip = self.skip, 0  # skipping is for one pass only
        order = self.order(self.epoch)
        repeats = _earlier(order) if self.balanced else np.zeros_like(order)
        own = np.concatenate([self._own(number) for number in range(skip, self.batches())] or [order[:0]])
        return zip(itertools.repeat(self.epoch), order[own].tolist(), repeats[own].tolist())

    def _own(self, number: int) -> np.ndarray:
        """This process's places of that batch in the order; in training one at least, for what all do together."""
        size = self.size(number)
        own = distributed.share(size)
        stop = max(own.stop, own.start + self.samples.training)
        return number * self.batch_size + np.arange(own.start, stop).clip(max=size - 1)

    def order(self, epoch: int) -> np.ndarray:
        """Positions of the samples in the order in which `epoch` sees them: it follows from (seed, epoch)."""
        count, generator = len(self.samples), generator_of(self.samples.seed, "order", epoch)
        if self.balanced:
            labels = np.asarray(self.samples.whole.targets)[self.samples.indices]
            _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
            return generator.choice(count, count, p=1 / (len(sizes) * sizes[classes]))
        return generator.permutation(count) if self.shuffle else np.arange(count)


def _earlier(order: np.ndarray) -> np.ndarray:
    """How often each entry has come before."""
    places = np.argsort(order, kind="stable")
    _, firsts, sizes = np.unique(order[places], return_index=True, return_counts=True)
    repeats = np.empty_like(order)
    repeats[places] = np.arange(len(order)) - np.repeat(firsts, sizes)
    return repeats


def collate(batch: Any) -> Any:
    """torch's default_collate, unless `__getitems__` has already made the batch (then it is a tuple)."""
    return batch if isinstance(batch, tuple) else default_collate(batch)
