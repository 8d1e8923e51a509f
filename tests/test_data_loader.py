"""Loaders compared with torch's DataLoader, scikit-learn's splits and torchvision's own pipeline."""

import gc
import random
import urllib.error
import urllib.request
import weakref

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, Dataset, TensorDataset

from base import BaseDataLoader
from data_loader.data_loaders import DigitsDataLoader, FashionMnistDataLoader, MnistDataLoader
from utils.errors import UserError
from utils.randomness import stratified_choice


class NoisyNumbers(Dataset):
    """Sample i is (i, noise from all three generators), or (i, 0) where nothing is augmented."""

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
    return [batch for _, batch in zip(range(len(loader)), loader.batches(number * len(loader)), strict=False)]


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
def test_batches_and_augmentation_follow_from_their_number_alone(workers):
    whole = NumbersLoader(batch_size=10, seed=3)
    stream = whole.batches()
    expected = [next(stream)[0] for _ in range(25)]  # more than two passes of 11
    torch.manual_seed(99), np.random.seed(99), random.seed(99)
    stream = NumbersLoader(batch_size=10, seed=3, num_workers=workers).batches(7)
    for number in range(7, 25):
        assert torch.equal(next(stream)[0], expected[number])


@pytest.mark.parametrize("workers", [0, 2])
def test_drawing_samples_leaves_the_global_generators_alone(workers):
    def draws():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = draws()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    for _ in NumbersLoader(batch_size=10, num_workers=workers):
        continue
    assert draws() == expected


def test_a_loader_is_part_of_no_reference_cycle():
    """Its workers would be waited for 5 seconds each: they only hear of the end once the loader is gone."""
    loader = NumbersLoader(batch_size=10, num_workers=2)
    next(iter(loader))
    samples = weakref.ref(loader.dataset)
    there = weakref.ref(loader)
    gc.disable()
    try:
        del loader
        assert there() is None
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
    assert numbers(loader.of_subset("train"))[:, 1].abs().max() == 0  # the same samples, for evaluation
    assert sorted(numbers(loader.of_subset("train"))[:, 0].tolist()) == sorted(train[:, 0].tolist())


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
def test_split_is_stratified_as_scikit_learns_is(counts):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    size = max(len(counts), len(labels) // 5)
    ours = np.bincount(labels[stratified_choice(labels, len(labels), size, seed=1)], minlength=len(counts))
    assert ours.sum() == size
    assert np.abs(ours - np.array(counts) * size / len(labels)).max() < 1
    if min(counts) > 1:  # scikit-learn refuses a class of one
        _, held_out = train_test_split(labels, test_size=size, stratify=labels, random_state=0)
        assert np.abs(ours - np.bincount(held_out, minlength=len(counts))).max() <= 1
    assert not np.array_equal(
        stratified_choice(labels, len(labels), size, seed=1), stratified_choice(labels, len(labels), size, seed=2)
    )


def test_digits_are_scikit_learns(data_dir):
    loader = DigitsDataLoader(str(data_dir), validation_split=0.1, batch_size=100)
    parts = [loader, loader.split_validation(), loader.of_subset("test")]
    sizes = [len(part.dataset) for part in parts]
    assert sizes == [1294, 144, 359]
    reference = load_digits()
    pictures = torch.cat([data for part in parts for data, _ in part])
    targets = torch.cat([target for part in parts for _, target in part])
    assert np.array_equal(np.bincount(targets), np.bincount(reference.target))
    assert pictures.shape[1:] == (1, 28, 28)
    # shrunk back, each is a picture scikit-learn has (bilinear growing blurs a little)
    shown = pictures * 0.32 + 0.22
    small = torch.nn.functional.interpolate(shown[:, :, 2:-2, 2:-2], size=(8, 8), mode="area")[:, 0].flatten(1)
    nearest = torch.cdist(small, torch.from_numpy(reference.images).flatten(1).float() / 16).argmin(1)
    assert (torch.from_numpy(reference.target)[nearest] == targets).float().mean() > 0.99
    train = torch.cat([loader.samples[i][0] for i in range(1438)])
    assert abs(train.mean()) < 0.05
    assert abs(train.std() - 1) < 0.05


def test_the_test_part_is_the_same_whatever_the_seed(data_dir):
    one, two = (torch.cat([t for _, t in DigitsDataLoader(str(data_dir), seed=s).of_subset("test")]) for s in (1, 2))
    assert torch.equal(one, two)


def test_digits_are_read_through_scikit_learn_once(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: pytest.fail("read again"))
    assert len(DigitsDataLoader(str(data_dir)).dataset) == 1438
    (tmp_path / "digits.npz").write_bytes(b"PK damaged")
    with pytest.raises(UserError, match="damaged"):
        len(DigitsDataLoader(str(tmp_path)).dataset)


def test_what_a_checkpoint_keeps_of_the_data(data_dir):
    loader = DigitsDataLoader(str(data_dir))
    assert loader.classes == [str(digit) for digit in range(10)]
    assert loader.input["shape"] == [1, 28, 28]
    assert loader.input["mean"] == [pytest.approx(0.22)]
    assert NumbersLoader().classes is None
    assert NumbersLoader().input == {"shape": [2], "mean": None, "std": None}


@pytest.mark.parametrize("loader", [MnistDataLoader, FashionMnistDataLoader])
def test_without_files_and_network_it_says_which_files_go_where(loader, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(UserError, match="train-images-idx3-ubyte") as caught:
        len(loader(str(tmp_path)).dataset)
    assert str(tmp_path / loader.name / "raw") in str(caught.value)


@pytest.mark.parametrize(("loader", "folder"), [(MnistDataLoader, "mnist"), (FashionMnistDataLoader, "fashion_mnist")])
def test_mnist_is_torchvisions(loader, folder, kata_data):
    from torchvision import datasets
    from torchvision.transforms import Compose, Normalize, ToTensor

    ours = loader(str(kata_data / folder), batch_size=500).of_subset("test")
    pipeline = Compose([ToTensor(), Normalize(loader.mean, loader.std)])
    dataset = getattr(datasets, loader.name)(kata_data / folder, train=False, transform=pipeline, download=True)
    reference = DataLoader(dataset, batch_size=500)
    assert len(ours) == len(reference)
    for (data, target), (expected, labels) in zip(ours, reference, strict=True):
        torch.testing.assert_close(data, expected)
        assert torch.equal(target, labels)


@pytest.mark.parametrize("targets", [np.random.default_rng(0).normal(size=100), np.eye(4)[np.arange(100) % 4]])
def test_targets_that_are_no_classes_are_split_at_random(targets):
    chosen = stratified_choice(targets, 100, 20, seed=1)
    assert len(set(chosen.tolist())) == 20
    if targets.ndim == 1:
        assert abs(targets[chosen].mean()) < 0.6  # not the twenty smallest


def test_classes_of_one_sample_are_not_all_taken_from_the_front():
    chosen = stratified_choice(np.arange(100), 100, 20, seed=1)
    assert chosen.max() > 50


def test_attributes_may_be_stored_after_the_base_was_made():
    class Late(BaseDataLoader):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.count = 30

        def build_dataset(self, subset, augment):
            return NoisyNumbers(self.count, augment)

    assert len(numbers(Late(validation_split=5, batch_size=4).split_validation())) == 5


def test_data_without_a_validation_part_say_so(data_dir):
    with pytest.raises(UserError, match="set validation_split"):
        len(DigitsDataLoader(str(data_dir), subset="val").dataset)
    assert len(DigitsDataLoader(str(data_dir), subset="val", validation_split=50).dataset) == 50


def test_a_loader_without_the_keyword_still_serves_the_test_part(own_code, digits, train, data_dir):
    import json

    import test as test_script

    own_code(
        "explicit_loader",
        "from data_loader.data_loaders import DigitsDataLoader\n"
        "class Explicit(DigitsDataLoader):\n"
        "    def __init__(self, data_dir, batch_size=50, shuffle=True, validation_split=0.0, training=True):\n"
        "        super().__init__(data_dir, batch_size=batch_size, validation_split=validation_split)\n",
    )
    section = {"type": "explicit_loader.Explicit", "args": {"data_dir": str(data_dir)}}
    run = train(digits({"test_data_loader": section}))
    assert test_script.main(["-r", str(run)]) == 0
    assert json.loads((run / "test" / "result.json").read_text())["n"] == 359
