import functools
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset

from base.samples import EpochSampler, Samples, collate
from utils import distributed
from utils.cores import cores
from utils.errors import UserError
from utils.hints import NonNegativeInt, PositiveInt, Share


class BaseDataLoader(DataLoader, ABC):
    """Batches of one subset of some data: write `build_dataset`.

    A subclass's constructor stores what it needs (`self.data_dir = data_dir`), then hands the rest on with
    `super().__init__(**kwargs)`; each keyword it adds is a key in the config. Nothing is read before the
    first sample is needed.

    Args:
        batch_size: samples in a batch, which all processes of a run share out among themselves
        shuffle: draw the training samples in another order in each epoch, which follows from (seed, epoch)
        validation_split: what `split_validation` sets apart from the training samples: a share (0.1) or a number (100)
        num_workers: processes that prepare batches; 0 prepares them in the training process, with the same result; "auto"
            takes as many as the machine has use for: none where a CPU trains, or the data are in memory as they are served
        drop_last: leave out the last training batch if it is not full
        seed: what the order, the split and the augmentation follow from; the config's own seed where not given
        subset: the samples to serve: "train", "val" or "test"
    """

    _for_training = True
    in_memory = False  # True for data that are there in whole batches, and need no workers

    def __init__(
        self,
        batch_size: PositiveInt = 64,
        shuffle: bool = True,
        validation_split: NonNegativeInt | Share = 0,
        num_workers: NonNegativeInt | Literal["auto"] = 0,
        drop_last: bool = False,
        seed: int = 0,
        subset: Literal["train", "val", "test"] = "train",
    ):
        before = set(vars(self))
        self.settings = {
            "batch_size": batch_size,
            "shuffle": shuffle,
            "validation_split": validation_split,
            "num_workers": num_workers,
            "drop_last": drop_last,
            "seed": seed,
        }
        self.subset = subset
        training = subset == "train" and self._for_training
        workers = (0 if self.in_memory else spare_cores()) if num_workers == "auto" else num_workers
        samples = Samples(self.build_dataset, subset, training, validation_split, seed)
        own = distributed.share(batch_size)
        if batch_size < distributed.world_size():
            raise UserError(f"batch_size {batch_size} is not one for each of {distributed.world_size()} processes")
        super().__init__(
            samples,
            own.stop - own.start,
            sampler=EpochSampler(samples, batch_size, shuffle and training, drop_last and training),
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=_leave_interrupts_to_the_parent,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # so that starting an epoch draws nothing from the global one
        )
        self._ours = {*vars(self), "_for_training", "classes", "input", "example"} - before

    @abstractmethod
    def build_dataset(self, subset: str, augment: bool) -> Dataset:
        """The samples of "train", "val" or "test", as a torch Dataset of (input, target).

        `augment` is True for training only: a validation part cut from "train" is built with False. A dataset
        with `targets` (one label per sample) is split with equal shares of each class, and, where it says that
        it is to be `balanced`, drawn from with replacement so that all classes come equally often; its `classes`
        (names), `mean` and `std` go into the checkpoint. If it defines `__getitems__(indices)`, that is called once
        per batch, and may return the finished batch, a tuple of tensors. If it defines `draw(index)` and
        `together(drawn)`, samples are drawn one by one, each with random numbers of its own, and made a batch together.
        One that says that it `draws_nothing` is spared the seeding.
        """

    @property
    def has_validation(self) -> bool:
        """Whether there are validation samples: `validation_split` is not 0, or the data bring their own."""
        return bool(self.settings["validation_split"])

    def check(self) -> list[str]:
        """What someone should know of the data before training, in lines. Raises UserError where they will not do."""
        return []

    def split_validation(self) -> "BaseDataLoader | None":
        """A loader of the validation samples, never augmented; None where `has_validation` is False.

        This loader never serves those, whether or not the method is called.
        """
        return self.of_subset("val") if self.has_validation else None

    def of_subset(self, subset: str) -> "BaseDataLoader":
        """A loader like this one for another subset of the same data, neither shuffled nor augmented."""
        sibling = object.__new__(type(self))
        # What is not the base's is the subclass's, which its build_dataset needs there too.
        vars(sibling).update({k: v for k, v in vars(self).items() if k not in self._ours}, _for_training=False)
        BaseDataLoader.__init__(sibling, **self.settings, subset=subset)
        return sibling

    def __len__(self) -> int:
        """Batches in a pass, of all processes together."""
        return self.sampler.batches()

    def share_of(self, number: int) -> float:
        """What this process's mean over its samples of batch `number`, counted as in `batches`, weighs in the whole batch's.

        1 where the samples are shared equally. 0 where it has none: it is given one all the same to train on, as the
        processes must keep in step.
        """
        if distributed.world_size() == 1:  # asked before each batch
            return 1.0
        size = self.sampler.size(number % len(self))
        own = distributed.share(size)
        return (own.stop - own.start) * distributed.world_size() / size

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation that the next pass over this loader uses; epochs count from 1."""
        self.sampler.epoch = epoch - 1

    def batches(self, first: int = 0) -> Iterator[Any]:
        """Batches without end, from number `first` on, pass after pass over the data.

        Each pass has its own order, so the batch with a given number is always the same one.
        """
        while True:
            self.sampler.epoch, self.sampler.skip = divmod(first, len(self))
            first = (self.sampler.epoch + 1) * len(self)
            yield from self

    def to(self, device: torch.device) -> None:
        """Let data in memory be prepared on the device that trains, where they fit into a quarter of what is free."""
        if device.type != "cuda" or not hasattr(self.samples, "to") or self.num_workers > 0:
            return
        if self.samples.pictures.numel() < torch.cuda.mem_get_info(device)[0] // 4:
            self.samples.to(device)
            self.pin_memory = False  # there is nothing to be pinned

    @property
    def samples(self) -> Dataset:
        """What `build_dataset` returned, whole."""
        return self.dataset.whole

    @functools.cached_property
    def classes(self) -> list[str] | None:
        """The classes' names, where the dataset knows them."""
        classes = getattr(self.samples, "classes", None)
        return None if classes is None else [str(name) for name in classes]

    @property
    def paths(self) -> list[str] | None:
        """The samples' files in the order they are served when not shuffled, where the dataset knows them."""
        paths = getattr(self.samples, "paths", None)
        return None if paths is None else [str(paths[index]) for index in self.dataset.indices]

    @property
    def class_weights(self) -> list[float] | None:
        """What a loss should weight each class with; None where all count the same."""
        return None

    @functools.cached_property
    def example(self) -> Any:
        """What a network is given for the first sample, without the batch axis."""
        sample = self.dataset[(0, 0, 0)]
        return sample[0] if isinstance(sample, tuple | list) else sample

    @functools.cached_property
    def input(self) -> dict:
        """What a network must be fed: shape without the batch axis, and the mean and std that were taken out."""
        numbers = {k: getattr(self.samples, k, None) for k in ("mean", "std")}
        plain = {k: None if v is None else torch.as_tensor(v).flatten().tolist() for k, v in numbers.items()}
        return {"shape": list(getattr(self.example, "shape", ())), **plain}


def spare_cores() -> int:
    """How many processes may prepare batches beside the training: up to 8 with a GPU; without one all cores compute."""
    return min(8, cores() - 1) if torch.cuda.is_available() else 0


def _leave_interrupts_to_the_parent(worker: int) -> None:
    # Ctrl-C, and a batch system's SIGTERM, reach the whole process group: a worker that dies of it would cost the
    # epoch that the trainer wants to save. In a group of its own it ends when the trainer lets it.
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
