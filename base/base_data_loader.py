import functools
import inspect
from abc import ABC
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from base.samples import Batch, EpochSampler, Sample, Samples
from base.worker_loader import WorkerLoader
from utils.config.hints import NonNegativeInt, PositiveInt, Share
from utils.config.signature import get_signature
from utils.engine import distributed
from utils.engine.engine import Transfer, map_tensors
from utils.engine.launch import cores
from utils.errors import UserError

LEAST_FOLDS = 3  # to train on, to validate, to test


class BaseDataLoader(WorkerLoader, ABC):
    """Batches of one subset of some data: write `build_dataset`, or pass a dataset on.

    A subclass's constructor stores its own arguments (`self.data_dir = data_dir`), then passes the
    rest on with `super().__init__(**kwargs)`; each keyword it adds is a key in the config. Nothing
    is read before the first sample is needed. A method `collate_fn(samples)` makes the batch from a
    list of samples, where torch's default_collate would not do.

    Args:
        dataset: the samples, in place of `build_dataset`; those for testing are the ones that the
            subclass passes on if its own argument `training` is False
        batch_size: samples in a batch, of all processes of a run together
        shuffle: another order of the training samples in each epoch; follows from (seed, epoch)
        validation_split: training samples to validate with instead: a share (0.1) or a number (100)
        num_workers: processes that prepare batches; the result is the same for any number. 0 uses
            the training process; "auto" measures what is fastest. None if the data is in memory
        collate_fn: function of a list of samples that makes the batch, as the method of that name
        drop_last: leave out the last training batch if it is not full
        seed: determines order, split and augmentation; by default the config's seed
        subset: the samples to serve: "train", "val" or "test"
        fold: [number, count]: the training samples are divided into `count` folds; fold `number`,
            from 0, is for testing, the next for validation, the others for training
    """

    _for_training = True
    in_memory = False  # True if whole batches are ready in memory: workers would only copy them

    def __new__(cls, *args: Any, **kwargs: Any) -> "BaseDataLoader":
        loader = super().__new__(cls)
        loader._arguments = args, kwargs
        return loader

    def __init__(
        self,
        dataset: Dataset | None = None,
        batch_size: PositiveInt = 64,
        shuffle: bool = True,
        validation_split: NonNegativeInt | Share = 0,
        num_workers: NonNegativeInt | Literal["auto"] = "auto",
        collate_fn: Callable[[list[Sample]], Batch] | None = None,
        drop_last: bool = False,
        seed: int = 0,
        subset: Literal["train", "val", "test"] = "train",
        fold: tuple[NonNegativeInt, PositiveInt] | None = None,
    ):
        if isinstance(dataset, int):  # before November 2026 batch_size came first
            raise UserError(f"BaseDataLoader: takes a dataset first; pass batch_size={dataset}")
        self._given, self._collate = dataset, collate_fn
        if dataset is None:
            vars(self).pop("_arguments", None)  # needed for the test samples of a given dataset
            if type(self).build_dataset is BaseDataLoader.build_dataset:
                name = type(self).__name__
                raise TypeError(f"{name} must define build_dataset, or pass a dataset on")
        if fold is not None and (validation_split or not fold[0] < fold[1] >= LEAST_FOLDS):
            raise UserError(
                f"data_loader.args.fold: {list(fold)} should be [number, count], at least "
                f"{LEAST_FOLDS} folds, counted from 0; validation_split should be 0"
            )
        before = set(vars(self))
        self.settings: dict[str, int | float | str | Sequence[int] | None] = {
            "batch_size": batch_size,
            "shuffle": shuffle,
            "validation_split": validation_split,
            "fold": fold,
            "num_workers": num_workers,
            "drop_last": drop_last,
            "seed": seed,
        }
        self.subset = subset
        training = subset == "train" and self._for_training
        processes = distributed.world_size()
        if self.in_memory or num_workers == "auto":  # until `set_workers` is called
            num_workers = 0
        if num_workers > (most := max(64, 4 * cores())):
            raise UserError(f"data_loader.args.num_workers: {num_workers} should be at most {most}")
        if batch_size < processes:
            raise UserError(f"batch_size {batch_size} is too small for {processes} processes")
        samples = Samples(self._build, subset, training, validation_split, fold, seed)
        super().__init__(
            samples,
            len(range(batch_size)[distributed.rank_slice(batch_size)]),
            sampler=EpochSampler(samples, batch_size, shuffle and training, drop_last and training),
            num_workers=num_workers,
            generator=torch.Generator(),  # to start an epoch without drawing from the global one
        )
        made = {"_for_training", "classes", "input", "example", "digest", "finish", *vars(self)}
        self._not_copied = made - before | {"dataset"}

    def build_dataset(self, subset: str, augment: bool) -> Dataset:
        """The samples of "train", "val" or "test", as a torch Dataset of (input, target).

        `augment` is True for training only: a validation part cut from "train" is built with False.
        The dataset may offer more, see `base.samples.BaseDataset`. By default it is the one that
        was given to the constructor, whatever `augment` is.
        """
        return self._given

    def _build(self, subset: str, augment: bool) -> tuple[Dataset, Callable | None]:
        """The samples, and the function that makes a batch of them if it is not torch's."""
        dataset, collate = self.build_dataset(subset, augment), self._collate
        if collate is None and hasattr(type(self), "collate_fn"):
            # not this loader's own method: in a reference cycle with it, its workers end late
            bare = self._copy()
            bare.subset, collate = self.subset, bare.collate_fn
        return dataset, collate

    @property
    def is_cut(self) -> bool:
        """Whether the training data is divided: by `validation_split` or `fold`."""
        return bool(self.settings["validation_split"] or self.settings["fold"])

    @property
    def has_validation(self) -> bool:
        """Whether there are validation samples: cut from the training data, or the data's own."""
        return self.is_cut

    def check(self) -> list[str]:
        """Lines to log before training. Raises UserError if the data cannot be used."""
        return []

    def left_out(self) -> list[str]:
        """Lines about samples of this subset that are not served, as they cannot be read."""
        return []

    def split_validation(self) -> "BaseDataLoader | None":
        """A loader of the validation samples, never augmented; None if `has_validation` is False.

        This loader never serves them, whether or not the method is called.
        """
        return self.for_subset("val") if self.has_validation else None

    def for_subset(self, subset: str, own_data: bool = False) -> "BaseDataLoader":
        """A loader like this one for a subset of the same data, neither shuffled nor augmented.

        `own_data` says that this loader was built for that subset's data. Raises UserError for the
        test samples of a loader that only knows the dataset it was given.
        """
        sibling = self._copy()
        sibling._for_training = False
        dataset = self._test_dataset(own_data) if subset == "test" else self._given
        own = {"collate_fn": self._collate, "subset": subset}
        BaseDataLoader.__init__(sibling, dataset, **self.settings, **own)
        return sibling

    def _copy(self) -> "BaseDataLoader":
        """What the subclass stored in this loader, without samples and workers."""
        copy = object.__new__(type(self))
        vars(copy).update({k: v for k, v in vars(self).items() if k not in self._not_copied})
        return copy

    def _test_dataset(self, own_data: bool) -> Dataset | None:
        """The dataset that the subclass passes on for testing, if it passes any on."""
        if self._given is None or self.settings["fold"]:
            return self._given
        names, (args, kwargs) = inspect.signature(self.__init__).parameters, self._arguments
        kwargs = dict(zip(names, args, strict=False)) | kwargs
        chosen = own_data and "training" in kwargs
        if "training" in get_signature(type(self)).parameters and not chosen:
            return type(self)(**kwargs | {"training": False})._given
        if not own_data:
            raise UserError(
                f"data_loader: {type(self).__name__} does not say which samples are for testing: "
                "give its constructor an argument training=True, False for these, or name their "
                "loader in test_data_loader"
            )
        return self._given

    def __len__(self) -> int:
        """Batches in a pass, of all processes together."""
        return self.sampler.batches()

    def batch_weight(self, number: int) -> float:
        """Weight of this process's mean over a batch in the mean over all processes.

        `number` counts as in `batches`. 1 if the processes' shares are equal. 0 if this one has
        none: it trains on a sample all the same, as the processes must keep in step.
        """
        if distributed.world_size() == 1:  # called before each batch
            return 1.0
        size = self.sampler.size(number % len(self))
        return len(range(size)[distributed.rank_slice(size)]) * distributed.world_size() / size

    def set_epoch(self, epoch: int) -> None:
        """Choose order and augmentation of the next pass over this loader; epochs count from 1."""
        self.sampler.epoch = epoch - 1

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Batches without end, from number `first` on, pass after pass over the data.

        Each pass has its own order, so the batch with a given number is always the same one.
        """
        while True:
            self.sampler.epoch, self.sampler.skip = divmod(first, len(self))
            first = (self.sampler.epoch + 1) * len(self)
            yield from self

    def find_not_finite(self, first: int, count: int) -> str | None:
        """The name of a sample with NaN or infinity in one of `count` batches, from number `first`
        on, which are made again; None if there is none. That of several if it cannot tell.
        """
        for number, batch in zip(range(first, first + count), self.batches(first), strict=False):
            values: list[Tensor] = []
            map_tensors(batch, values.append)
            for value in values:
                wrong = ~torch.atleast_1d(value).isfinite()[..., None].flatten(1)
                if rows := wrong.any(1).nonzero().flatten().tolist():
                    self.sampler.epoch, place = divmod(number, len(self))
                    keys = next(islice(self.batch_sampler, place, None))
                    names = [self.dataset.name(int(self.dataset.indices[key[1]])) for key in keys]
                    is_per_sample = len(wrong) == len(names)
                    return names[rows[0]] if is_per_sample else f"one of {', '.join(names)}"
        return None

    def to(self, device: torch.device) -> None:
        """Serve batches on this GPU, copied and finished while it computes on those before; data in
        memory are moved there, if they fit. On the CPU nothing changes.
        """
        if device.type != "cuda":
            return
        if self.num_workers == 0 and self.dataset.offers.to(device):
            self.in_memory = True
        else:
            self.dataset.offers.finish_later()
            self.pin_memory, self.finish = True, Transfer(device, self.dataset.finish)

    def finish(self, batch: Batch) -> Batch:
        """A batch that `dataset` made, as it is served."""
        return self.dataset.finish(batch)

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            yield self.finish(batch)

    @property
    def samples(self) -> Dataset:
        """What `build_dataset` returned, whole."""
        return self.dataset.whole

    @functools.cached_property
    def classes(self) -> list[str] | None:
        """Names of the classes, if the dataset knows them."""
        classes = self.dataset.offers.classes
        return None if classes is None else [str(name) for name in classes]

    @property
    def paths(self) -> list[str] | None:
        """File of each sample in unshuffled order, if the dataset knows them."""
        paths = self.dataset.offers.paths
        return None if paths is None else [str(paths[index]) for index in self.dataset.indices]

    @property
    def class_weights(self) -> list[float] | None:
        """Weight of each class in the loss; None if all count the same."""
        return None

    @functools.cached_property
    def digest(self) -> str | None:
        """Changes with the samples that this loader serves; None if it cannot say."""
        return None

    @functools.cached_property
    def example(self) -> Sample:
        """The network's input for the first sample, without the batch axis."""
        sample, collate = self.dataset[(0, self._first(), 0)], self.dataset.collate_fn
        sample = sample if collate is None else collate([sample])
        data = sample[0] if isinstance(sample, tuple | list) else sample
        return data if collate is None else map_tensors(data, lambda tensor: tensor[0])

    def _first(self) -> int:
        """Position of a sample that can be read."""
        return 0

    @functools.cached_property
    def input(self) -> dict[str, list[int] | list[float] | str | None]:
        """Of the network's input: "shape" without batch axis, "mean" and "std" of normalisation,
        "range" of values that were scaled to 0..255 (None: they are, or this is unknown).
        """
        shape, offers = list(getattr(self.example, "shape", ())), self.dataset.offers
        if self.dataset.collate_fn is not None and len(shape) != 3:
            shape = []  # padded sequences have another size in each batch
        result = {"shape": shape, "range": offers.pixel_range}
        for name, values in ("mean", offers.mean), ("std", offers.std):
            result[name] = None if values is None else torch.as_tensor(values).flatten().tolist()
        return result


class ChosenBatches(WorkerLoader):
    """Batches of the samples at given positions, made and finished as `loader` does it."""

    def __init__(self, loader: BaseDataLoader, batches: list[list[int]], workers: int = 0):
        keys = [[(0, position, 0) for position in batch] for batch in batches]
        super().__init__(loader.dataset, batch_sampler=keys, num_workers=workers)
        self.finish = loader.finish

    def __iter__(self) -> Iterator[Batch]:
        return map(self.finish, super().__iter__())
