"""Loaders compared with torch's DataLoader and scikit-learn's splits."""

import gc
import multiprocessing
import random
import weakref

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, Dataset, TensorDataset

from base import BaseDataLoader
from base.base_data_loader import ChosenBatches
from base.samples import BaseDataset
from base.worker_loader import WorkerLoader
from data_loader.data_loaders import DigitsDataLoader
from utils.engine.randomness import stratified_choice
from utils.errors import UserError


class NoisyNumbers(Dataset):
    """Sample i is (i, noise from all three generators), or (i, 0) without augmentation."""

    def __init__(self, count, augment, labels=None):
        self.count, self.augment, self.targets = count, augment, labels

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        noise = torch.rand(()).item() + np.random.rand() + random.random() if self.augment else 0.0
        return torch.tensor([float(index), noise]), torch.tensor(0)


class NumbersLoader(BaseDataLoader):
    def __init__(self, count=103, labels=None, **kwargs):
        self.count, self.labels = count, labels
        super().__init__(**kwargs)

    def build_dataset(self, subset, augment):
        return NoisyNumbers(self.count, augment, self.labels)


def numbers(batches):
    return torch.cat([data for data, _ in batches])


def first_pass(loader, number=0):
    return [
        batch
        for _, batch in zip(range(len(loader)), loader.batches(number * len(loader)), strict=False)
    ]


def test_is_abstract():
    with pytest.raises(TypeError, match="build_dataset"):
        BaseDataLoader()


def test_is_a_torch_data_loader_and_batches_like_one():
    loader = NumbersLoader(batch_size=10, shuffle=False)
    reference = DataLoader(TensorDataset(torch.arange(103)), batch_size=10)
    assert isinstance(loader, DataLoader)
    assert len(loader) == len(reference) == 11
    for (data, _), (expected,) in zip(loader, reference, strict=True):
        assert torch.equal(data[:, 0].long(), expected)
    assert len(NumbersLoader(batch_size=10, drop_last=True)) == 10


def test_nothing_is_read_before_it_is_needed():
    class Unreadable(BaseDataLoader):
        def build_dataset(self, subset, augment):
            raise UserError("read")

    loader = Unreadable(validation_split=0.1)
    validation = loader.split_validation()
    for part in (loader, validation):
        with pytest.raises(UserError, match="read"):
            len(part)


def test_each_pass_has_its_own_order_of_all_samples():
    loader = NumbersLoader(batch_size=10, seed=3)
    orders = [numbers(first_pass(loader, epoch))[:, 0].tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(103)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert orders[1] == numbers(first_pass(NumbersLoader(batch_size=10, seed=3), 1))[:, 0].tolist()
    assert orders[1] != numbers(first_pass(NumbersLoader(batch_size=10, seed=4), 1))[:, 0].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_and_augmentation_follow_from_their_number(workers):
    stream = NumbersLoader(batch_size=10, seed=3).batches()
    expected = [next(stream)[0] for _ in range(25)]  # more than two passes of 11
    torch.manual_seed(99), np.random.seed(99), random.seed(99)
    stream = NumbersLoader(batch_size=10, seed=3, num_workers=workers).batches(7)
    for number in range(7, 25):
        assert torch.equal(next(stream)[0], expected[number])


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_generators_alone(workers):
    def draws():
        return (
            torch.rand(3).tolist(),
            np.random.rand(3).tolist(),
            [random.random() for _ in range(3)],
        )

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = draws()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    for _ in NumbersLoader(batch_size=10, num_workers=workers):
        continue
    assert draws() == expected


class Refused(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index == 25:
            raise ValueError("no such row")
        return index


def test_workers_end_at_once_although_an_error_that_is_kept_holds_their_pass():
    loader = BaseDataLoader(Refused(), batch_size=2, shuffle=False, num_workers=2)
    with pytest.raises(UserError, match="no such row") as kept:
        list(loader)
    assert kept.tb is not None
    assert not multiprocessing.active_children()

    with pytest.raises(UserError, match=r"^data_loader: sample 25 of train cannot be loaded"):
        list(ChosenBatches(loader, [[3, 4], [24, 25]], workers=1))
    assert not multiprocessing.active_children()

    batches = iter(loader)  # an error elsewhere: this pass is held, and does not go on
    next(batches)
    assert multiprocessing.active_children()
    loader.end_workers()
    assert not multiprocessing.active_children()

    loader.set_workers(2, persistent=False)
    batches = iter(loader)
    next(batches)
    assert multiprocessing.active_children()
    batches.close()
    assert not multiprocessing.active_children()


def test_loader_is_in_no_reference_cycle():
    """In a cycle the loader is deleted late, and each of its workers is waited for 5 seconds."""
    loader = NumbersLoader(batch_size=10, num_workers=2)
    next(iter(loader))
    samples = weakref.ref(loader.dataset)
    reference = weakref.ref(loader)
    gc.disable()
    try:
        del loader
        assert reference() is None
    finally:
        gc.enable()
    assert samples() is None or samples().build is None


def test_abandoning_a_pass_does_not_shorten_the_next():
    loader = NumbersLoader(batch_size=10, shuffle=False)
    next(loader.batches(5))
    assert len(numbers(loader)) == 103


@pytest.mark.parametrize("size", [0.1, 0.25, 20])
def test_validation_is_disjoint_complete_and_never_augmented(size):
    loader = NumbersLoader(batch_size=10, validation_split=size)
    validation = loader.split_validation()
    train, valid = numbers(loader), numbers(validation)
    assert sorted([*train[:, 0].tolist(), *valid[:, 0].tolist()]) == list(range(103))
    assert len(valid) == (size if isinstance(size, int) else round(103 * size))
    assert valid[:, 1].abs().max() == 0
    assert (train[:, 1] > 0).all()
    assert torch.equal(valid, numbers(loader.split_validation()))  # fixed, and in order
    evaluation = numbers(loader.for_subset("train"))  # the same samples, not augmented
    assert evaluation[:, 1].abs().max() == 0
    assert sorted(evaluation[:, 0].tolist()) == sorted(train[:, 0].tolist())


def test_no_validation_is_none():
    assert NumbersLoader(validation_split=0).split_validation() is None
    assert NumbersLoader(validation_split=0.0).split_validation() is None


def test_subclasses_need_not_know_about_splits():
    class Explicit(NumbersLoader):
        def __init__(self, count, batch_size, shuffle=True, validation_split=0.0, num_workers=1):
            super().__init__(count, batch_size=batch_size, validation_split=validation_split)

    validation = Explicit(50, 5, validation_split=10).split_validation()
    assert len(numbers(validation)) == 10


@pytest.mark.parametrize("counts", [[50, 30, 20], [97, 2, 1], [10, 10, 10], [3, 1, 500]])
def test_split_is_stratified_like_scikit_learns(counts):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    size = max(len(counts), len(labels) // 5)
    ours = np.bincount(
        labels[stratified_choice(labels, len(labels), size, seed=1)], minlength=len(counts)
    )
    assert ours.sum() == size
    assert np.abs(ours - np.array(counts) * size / len(labels)).max() < 1
    if min(counts) > 1:  # scikit-learn refuses a class of one
        _, held_out = train_test_split(labels, test_size=size, stratify=labels, random_state=0)
        assert np.abs(ours - np.bincount(held_out, minlength=len(counts))).max() <= 1
    assert not np.array_equal(
        stratified_choice(labels, len(labels), size, seed=1),
        stratified_choice(labels, len(labels), size, seed=2),
    )


def test_classes_and_input_for_the_checkpoint(data_dir):
    loader = DigitsDataLoader(str(data_dir))
    assert loader.classes == [str(digit) for digit in range(10)]
    assert loader.input["shape"] == [1, 28, 28]
    assert loader.input["mean"] == [pytest.approx(0.22)]
    assert NumbersLoader().classes is None
    assert NumbersLoader().input == {"shape": [2], "mean": None, "std": None, "range": None}


@pytest.mark.parametrize(
    "targets", [np.random.default_rng(0).normal(size=100), np.eye(4)[np.arange(100) % 4]]
)
def test_targets_that_are_not_classes_are_split_at_random(targets):
    chosen = stratified_choice(targets, 100, 20, seed=1)
    assert len(set(chosen.tolist())) == 20
    if targets.ndim == 1:
        assert abs(targets[chosen].mean()) < 0.6  # not the twenty smallest


def test_classes_of_one_sample_are_split_at_random():
    chosen = stratified_choice(np.arange(100), 100, 20, seed=1)
    assert chosen.max() > 50


def test_attributes_may_be_stored_after_the_base_constructor():
    class Late(BaseDataLoader):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.count = 30

        def build_dataset(self, subset, augment):
            return NoisyNumbers(self.count, augment)

    assert len(numbers(Late(validation_split=5, batch_size=4).split_validation())) == 5


class ImageFolderLike(NoisyNumbers):
    """As a dataset of torchvision: `transform` is a function of an image, not of an index."""

    classes, mean, paths = ["a", "b"], [0.5, 0.25], ["x.png", "y.png", "z.png"]

    def transform(self, image):
        pytest.fail("not the loader's to call")

    collate = to = transform


def test_attributes_of_any_dataset_are_used_but_not_its_methods(monkeypatch):
    monkeypatch.setattr("base.base_data_loader.Transfer", lambda device, finish: finish)

    class Loader(BaseDataLoader):
        def build_dataset(self, subset, augment):
            return ImageFolderLike(3, augment=False)

    loader = Loader(batch_size=2, shuffle=False)
    reference = DataLoader(NoisyNumbers(3, augment=False), batch_size=2)
    for ours, expected in zip(loader, reference, strict=True):
        assert torch.equal(ours[0], expected[0])
    loader.to(torch.device("cuda"))
    assert loader.classes == ["a", "b"]
    assert loader.paths == ["x.png", "y.png", "z.png"]
    assert loader.input == {"shape": [2], "mean": [0.5, 0.25], "std": None, "range": None}


class Squares(BaseDataset):
    """The squares, each with noise, and the noise of each batch."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.tensor(index**2), torch.rand(())

    def transform(self, index):
        square, noise = self[index]
        return square.double(), noise

    def collate(self, samples):
        squares, noise = (torch.stack(parts) for parts in zip(*samples, strict=True))
        return squares, noise, torch.rand(())


@pytest.mark.parametrize("workers", [0, 2])
def test_transform_and_collate_of_a_base_dataset_make_the_batch(workers):
    class Loader(BaseDataLoader):
        def build_dataset(self, subset, augment):
            return Squares()

    loader = Loader(batch_size=5, shuffle=False, num_workers=workers, seed=3)
    again = Loader(batch_size=5, shuffle=False, seed=3)
    for start, (squares, noise, last), repeated in zip((0, 5), loader, again, strict=True):
        assert squares.tolist() == [float(i**2) for i in range(start, start + 5)]
        assert squares.dtype == torch.float64
        assert len(set(noise.tolist())) == 5
        assert torch.equal(noise, repeated[1])
        assert torch.equal(last, repeated[2])
    assert (loader.classes, loader.paths) == (None, None)
    assert not loader.dataset.offers.to(torch.device("cpu"))


class Ragged(Dataset):
    """Sample i is a sequence of 1 to 5 numbers, drawn anew in each epoch, and its true length."""

    def __len__(self):
        return 23

    def __getitem__(self, index):
        length = 1 + index % 5
        return {"sequence": torch.rand(length), "length": length}


def padded(samples):
    sequences = [sample["sequence"] for sample in samples]
    noise = torch.rand(())  # follows from (seed, epoch, sample), too
    return {
        "sequences": torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True) + noise,
        "lengths": [sample["length"] for sample in samples],
    }


class ByArgument(BaseDataLoader):
    def __init__(self, **kwargs):
        super().__init__(collate_fn=padded, **kwargs)

    def build_dataset(self, subset, augment):
        return Ragged()


class ByMethod(BaseDataLoader):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.function = padded

    def build_dataset(self, subset, augment):
        return Ragged()

    def collate_fn(self, samples):
        return self.function(samples)


@pytest.mark.parametrize("kind", [ByArgument, ByMethod])
@pytest.mark.parametrize("workers", [0, 2])
def test_collate_fn_makes_the_batch_the_same_after_a_resume(kind, workers):
    settings = {"batch_size": 4, "seed": 3, "validation_split": 3}
    stream = ByArgument(**settings).batches()
    expected = [next(stream) for _ in range(12)]  # more than two passes of 5
    stream = kind(**settings, num_workers=workers).batches(7)
    for number in range(7, 12):
        batch = next(stream)
        assert batch["lengths"] == expected[number]["lengths"]
        assert torch.equal(batch["sequences"], expected[number]["sequences"])
    widths = {batch["sequences"].shape[1] for batch in expected}
    assert widths <= {3, 4, 5}
    validation = kind(**settings, num_workers=workers).split_validation()
    assert [len(batch["lengths"]) for batch in validation] == [3]
    assert validation.input["shape"] == []


def test_loader_with_its_own_collate_fn_is_in_no_reference_cycle():
    loader = ByMethod(batch_size=4, num_workers=2)
    next(iter(loader))
    reference = weakref.ref(loader)
    gc.disable()
    try:
        del loader
        assert reference() is None
    finally:
        gc.enable()


def test_collate_fn_gets_samples_of_data_that_comes_in_whole_batches(data_dir):
    class Listed(DigitsDataLoader):
        def collate_fn(self, samples):
            images, targets = zip(*samples, strict=True)
            return {"image": torch.stack(images), "target": torch.stack(targets), "of": self.subset}

    settings = {"data_dir": str(data_dir), "batch_size": 10, "validation_split": 0.1}
    for ours, (images, targets) in zip(
        Listed(**settings).split_validation(),
        DigitsDataLoader(**settings).split_validation(),
        strict=True,
    ):
        assert torch.equal(ours["image"], images)
        assert torch.equal(ours["target"], targets)
        assert ours["of"] == "val"


class Given(BaseDataLoader):
    """As in pytorch-template: its constructor makes the dataset and passes it on."""

    def __init__(
        self, count, batch_size, shuffle=True, validation_split=0.0, num_workers=1, training=True
    ):
        self.dataset = NoisyNumbers(count if training else 7, augment=training)
        super().__init__(self.dataset, batch_size, shuffle, validation_split, num_workers)


def test_dataset_given_to_the_constructor_is_served():
    loader = Given(103, 10, validation_split=0.1, num_workers=0)
    assert isinstance(loader, DataLoader)
    validation = loader.split_validation()
    train, valid = numbers(loader), numbers(validation)
    assert sorted([*train[:, 0].tolist(), *valid[:, 0].tolist()]) == list(range(103))
    assert len(valid) == 10
    assert (valid[:, 1] > 0).all()  # the same dataset, so augmented alike
    stream = Given(103, 10, validation_split=0.1, num_workers=0).batches()
    expected = [next(stream)[0] for _ in range(25)]
    resumed = Given(103, 10, validation_split=0.1, num_workers=2).batches(12)
    for number in range(12, 25):
        assert torch.equal(next(resumed)[0], expected[number])


def test_test_samples_of_a_given_dataset_are_those_without_training():
    testing = Given(103, 10, validation_split=0.1, num_workers=0).for_subset("test")
    assert numbers(testing)[:, 0].tolist() == list(range(7))
    assert numbers(testing)[:, 1].abs().max() == 0


def test_training_may_be_an_argument_of_the_parent():
    class Larger(Given):
        def __init__(self, factor=2, **kwargs):
            super().__init__(103 * factor, **kwargs)

    loader = Larger(3, batch_size=10, num_workers=0)
    assert len(numbers(loader)) == 309
    assert len(numbers(loader.for_subset("test"))) == 7
    chosen = Larger(batch_size=10, num_workers=0, training=True).for_subset("test", own_data=True)
    assert len(numbers(chosen)) == 206  # as the config's test_data_loader says


def test_test_samples_of_a_given_dataset_may_be_unknown():
    class Plain(BaseDataLoader):
        def __init__(self, count=30, batch_size=10):
            super().__init__(NoisyNumbers(count, augment=False), batch_size)

    with pytest.raises(UserError, match="Plain does not say which samples are for testing"):
        Plain().for_subset("test")
    own = Plain(12).for_subset("test", own_data=True)  # as the config's test_data_loader
    assert numbers(own)[:, 0].tolist() == list(range(12))


def test_number_in_place_of_the_dataset_is_explained():
    class Old(NumbersLoader):
        def __init__(self):
            BaseDataLoader.__init__(self, 64)

    with pytest.raises(UserError, match="pass batch_size=64"):
        Old()


def test_workers_end_with_the_training(digits, train, monkeypatch):
    config = digits(
        {"trainer.epochs": 1, "trainer.len_epoch": 2, "data_loader.args.num_workers": 2}
    )
    monkeypatch.setattr(DigitsDataLoader, "in_memory", False)
    started = []
    begin = WorkerLoader._check_open_files
    monkeypatch.setattr(
        WorkerLoader, "_check_open_files", lambda loader: started.append(loader) or begin(loader)
    )
    train(config)
    assert started
    assert not multiprocessing.active_children()
