"""Which samples a loader serves, in which order, and each with which random numbers."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate, get_worker_info

from base.parts import share_out
from utils.engine import distributed
from utils.engine.engine import Tensors, map_tensors
from utils.engine.randomness import make_generator, seeded, stratified_choice
from utils.errors import UserError, explained
from utils.files import printable

Sample = Tensors  # what a dataset returns and the task understands: (input, target), a dict, ...
Batch = Tensors  # the same for several samples: a tuple of tensors, a dict of tensors, ...
BLOCK = 100  # batches
Key = tuple[int, int, int]  # (epoch, position, how often the sample came in the epoch before)


class BaseDataset(Dataset):
    """A dataset that offers the loader more than its samples. Everything is optional.

    The loader uses the attributes of every dataset that has them (torchvision's have `classes` and
    `targets`), but the methods only of datasets derived from this class.

    Attributes:
        classes: names of the classes
        targets: one label per sample; the validation split then has equal class proportions
        mean: what was subtracted from each channel; saved in the checkpoint
        std: what each channel was divided by; saved in the checkpoint
        pixel_range: lowest and highest value of images with more than 8 bits, scaled to 0..255
        paths: file of each sample
        groups: lot, camera or patient of each sample; the validation split divides none
        balanced: draw training samples with replacement, so that all classes come equally often
        deterministic: samples draw no random numbers, so the loader need not seed any
        may_lack: a sample that cannot be read may be missing in its batch
        finishes_later: `collate` leaves something to `finish`, see `finish_later`
        __getitems__: function of a list of indices, called once per batch; returns the samples, or
            the finished batch as a tuple of tensors
    """

    classes: Sequence[str] | None = None
    targets: Sequence[int] | np.ndarray | Tensor | None = None
    mean: Sequence[float] | Tensor | None = None
    std: Sequence[float] | Tensor | None = None
    pixel_range: list[float] | str | None = None
    paths: Sequence[str] | None = None
    groups: Sequence[str] | None = None
    balanced: bool = False
    deterministic: bool = False
    may_lack: bool = False
    finishes_later: bool = False
    __getitems__: Callable[[list[int]], list[Sample] | Batch] | None = None

    def transform(self, index: int) -> Sample:
        """One sample as `collate` takes it, drawn with random numbers of its own."""
        return self[index]

    def collate(self, samples: list[Sample]) -> list[Sample] | Batch:
        """The batch as a tuple of tensors; a list goes through torch's default_collate."""
        return samples

    def finish(self, batch: Batch) -> Batch:
        """What `collate` left to do, where the batch is used. Only called if `finishes_later`."""
        return batch

    def finish_later(self) -> None:
        """Called before the first batch if a GPU trains: leave to `finish` what it does better than
        a worker, and what would be more bytes to copy. Does nothing by default.
        """

    def to(self, device: torch.device) -> bool:
        """Move the data to `device` if they fit there; return whether they are there now."""
        return False


@dataclass(eq=False)
class Samples(Dataset):
    """The samples of one subset, by Key: what a sample draws follows from its key and the seed."""

    build: Callable[[str, bool], tuple[Dataset, Callable | None]] | None  # the loader's _build
    subset: str
    training: bool
    validation_split: int | float
    fold: Sequence[int] | None  # [number, count]
    seed: int
    collate_fn: Callable[[list[Sample]], Batch] | None = field(default=None, init=False)
    # of each worker, in shared memory: the sample that it loads, -1 for none
    loading: Sequence[int] | None = field(default=None, init=False)

    @functools.cached_property
    def whole(self) -> Dataset:
        """What `build_dataset` returned."""
        is_cut = self.fold or (self.subset == "val" and self.validation_split)
        subset = "train" if is_cut else self.subset
        # `build` is the loader's method: in a reference cycle with it, its workers end late.
        (dataset, self.collate_fn), self.build = self.build(subset, self.training), None
        return dataset

    @functools.cached_property
    def offers(self) -> BaseDataset:
        """`whole`, with defaults for what it lacks."""
        if isinstance(self.whole, BaseDataset):
            return self.whole
        offers, names = BaseDataset(), BaseDataset.__annotations__
        attributes = {k: getattr(self.whole, k) for k in names if hasattr(self.whole, k)}
        vars(offers).update(attributes, transform=self.whole.__getitem__)
        return offers

    @functools.cached_property
    def indices(self) -> np.ndarray:
        """Position in this subset -> index in `whole`. Raises UserError if the subset is empty."""
        count, split = len(self.whole), self.validation_split
        if count == 0:
            raise UserError(f"there are no samples for {self.subset}")
        if self.fold:
            return self._of_fold(count, *self.fold)
        if self.subset == "test" or not split:
            return np.arange(count)
        size = split if isinstance(split, int) else round(count * split)
        if not 0 < size < count:
            raise UserError(f"validation_split {split} of {count} samples leaves a part empty")
        held_out = self._held_out(count, size)
        return held_out if self.subset == "val" else np.setdiff1d(np.arange(count), held_out)

    def _held_out(self, count: int, size: int) -> np.ndarray:
        """`size` of `count` indices for validation; with groups, about as many, in whole groups."""
        targets, groups = self.offers.targets, self.offers.groups
        if groups is None:
            return stratified_choice(targets, count, size, self.seed)
        return np.flatnonzero(self._shared_out([1 - size / count, size / count]))

    def _of_fold(self, count: int, number: int, folds: int) -> np.ndarray:
        """Of `count` indices those of this subset, if fold `number` is the one that is tested."""
        fold = self._shared_out([1 / folds] * folds)
        role = {number: "test", (number + 1) % folds: "val"}
        chosen = np.flatnonzero([role.get(each, "train") == self.subset for each in fold.tolist()])
        if len(chosen) == 0:
            raise UserError(
                f"data_loader.args.fold: {count} samples in {folds} folds leave none for "
                f"{self.subset}; a fold needs samples of several groups, if there are any"
            )
        return chosen

    def _shared_out(self, shares: list[float]) -> np.ndarray:
        """The part of each index, by the samples' classes and groups."""
        targets, groups, count = self.offers.targets, self.offers.groups, len(self.whole)
        values = np.asarray([""] * count if targets is None else targets)
        # classes are stratified, but not the values of a regression
        labels = [""] * count if values.dtype.kind == "f" else map(str, values.tolist())
        names = [str(index) for index in range(count)]
        owners = names if groups is None else [str(group) for group in groups]
        parts = share_out(zip(names, labels, owners, strict=True), shares, self.seed, {})
        return np.array([parts[name] for name in names])

    def __len__(self) -> int:
        return len(self.indices)

    def finish(self, batch: Batch) -> Batch:
        """The batch as the network takes it, from what `__getitems__` made."""
        later = self.collate_fn is None and self.offers.finishes_later
        return self.offers.finish(batch) if later else batch

    def name(self, index: int) -> str:
        """A sample of `whole` as a message calls it."""
        paths = self.offers.paths
        return f"sample {index} of {self.subset}" if paths is None else printable(str(paths[index]))

    def __getstate__(self) -> dict[str, object]:
        # A spawned worker gets the built dataset, not the loader that builds it.
        return {"whole": self.whole, "indices": self.indices, **vars(self)}

    def __getitem__(self, key: Key) -> Sample:
        index = int(self.indices[key[1]])
        with self._seeded((key[0], index, key[2])), explained(_failure(self.name(index))):
            return self.whole[index]

    def __getitems__(self, keys: list[Key]) -> Batch:
        """The finished batch."""
        indices = self.indices[[position for _, position, _ in keys]].tolist()
        seeds = [(key[0], index, key[2]) for key, index in zip(keys, indices, strict=True)]
        reading = self._begin(indices)
        try:
            with self._seeded(seeds[0]) as reseed:
                if self.collate_fn is None and self.offers.__getitems__:
                    batch = self.offers.__getitems__(indices)
                else:
                    is_own, samples = self.collate_fn is not None, []
                    take = self.whole.__getitem__ if is_own else self.offers.transform
                    for parts in seeds:
                        reading = self._begin([parts[1]])
                        reseed(*self._seed(parts))
                        samples.append(take(parts[1]))
                    reading = self._begin(indices)
                    if is_own:  # its random numbers, too, follow from the keys
                        return self.collate_fn(samples)
                    batch = self.offers.collate(samples)
            return batch if isinstance(batch, tuple) else default_collate(batch)
        except Exception:
            some = ", ".join([*map(self.name, reading[:5]), *["..."] * (len(reading) > 5)])
            with explained(_failure(some)):
                raise
        finally:
            self._begin([-1])

    def _begin(self, indices: list[int]) -> list[int]:
        """Note for the main process, if this is a worker, which samples are loaded now."""
        if self.loading is not None and (worker := get_worker_info()) is not None:
            self.loading[worker.id] = indices[0]
        return indices

    def _seeded(self, parts: Key) -> contextlib.AbstractContextManager[Callable]:
        if self.offers.deterministic and self.collate_fn is None:
            return contextlib.nullcontext(lambda *parts: None)
        return seeded(*self._seed(parts))

    def _seed(self, parts: Key) -> tuple[int | str, ...]:
        return self.seed, self.subset, *(parts if parts[2] else parts[:2])


def _failure(names: str) -> str:
    return f"data_loader: {names} cannot be loaded"


class EpochSampler(Sampler):
    """The keys of an epoch's samples in their order, without the first `skip` batches.

    Of each batch only this process's share. The keys, and so the samples, do not depend on the
    number of processes. In training a process without a share of a batch gets one sample of it.
    """

    def __init__(self, samples: Samples, batch_size: int, shuffle: bool, drop_last: bool):
        self.samples, self.batch_size = samples, batch_size
        self.shuffle, self.drop_last = shuffle, drop_last
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return sum(len(self._share(number)) for number in range(self.batches()))

    def batches(self) -> int:
        """Batches in a pass, of all processes together."""
        count = len(self.samples)
        return (count if self.drop_last else count + self.batch_size - 1) // self.batch_size

    def size(self, number: int) -> int:
        """Samples in batch `number` of a pass, of all processes together."""
        return min(self.batch_size, len(self.samples) - number * self.batch_size)

    def __iter__(self) -> Iterator[Key]:
        skip, self.skip = self.skip, 0  # only this pass skips
        order = self.order(self.epoch)
        repeats = np.zeros_like(order)
        if self.samples.offers.balanced:  # count how often each sample has come before
            places = np.argsort(order, kind="stable")
            repeats[places] = np.arange(len(order)) - np.searchsorted(order[places], order[places])
        epoch, share = self.epoch, range(skip, self.batches())
        for start in range(0, len(share), BLOCK):  # a million numbers as objects take 40 MB
            places = np.concatenate([*map(self._share, share[start : start + BLOCK])])
            positions, before = order[places].tolist(), repeats[places].tolist()
            yield from zip(itertools.repeat(epoch), positions, before)

    def _share(self, number: int) -> np.ndarray:
        """Places in the order of this process's part of batch `number`."""
        size = self.size(number)
        share = distributed.rank_slice(size)
        stop = max(share.stop, share.start + self.samples.training)
        return number * self.batch_size + np.arange(share.start, stop).clip(max=size - 1)

    def order(self, epoch: int) -> np.ndarray:
        """Positions of the samples in the order of `epoch`, which follows from (seed, epoch)."""
        count, generator = len(self.samples), make_generator(self.samples.seed, "order", epoch)
        if self.samples.offers.balanced:
            labels = np.asarray(self.samples.offers.targets)[self.samples.indices]
            _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
            return generator.choice(count, count, p=1 / (len(sizes) * sizes[classes]))
        return generator.permutation(count) if self.shuffle else np.arange(count)


def count_samples(batch: Batch) -> int:
    """Samples in a batch: the length of its first tensor."""
    sizes: list[int] = []
    map_tensors(batch, lambda tensor: sizes.append(len(tensor)))
    return sizes[0] if sizes else 0


def spaced(length: int, count: int) -> list[int]:
    """At most `count` positions in a sequence, evenly spaced."""
    return np.linspace(0, length - 1, min(count, length)).astype(int).tolist()


def finished(batch: Batch) -> Batch:
    """A collate function for `Samples`, which return finished batches."""
    return batch
