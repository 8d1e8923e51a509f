"""The loaders of known data sets, compared with scikit-learn and torchvision."""

import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from data_loader.data_loaders import (
    Cifar10DataLoader,
    DigitsDataLoader,
    FashionMnistDataLoader,
    MnistDataLoader,
)
from utils.errors import UserError


def test_digits_equal_scikit_learns(data_dir):
    loader = DigitsDataLoader(str(data_dir), validation_split=0.1, batch_size=100)
    parts = [loader, loader.split_validation(), loader.for_subset("test")]
    sizes = [len(part.dataset) for part in parts]
    assert sizes == [1294, 144, 359]
    reference = load_digits()
    images = torch.cat([data for part in parts for data, _ in part])
    targets = torch.cat([target for part in parts for _, target in part])
    assert np.array_equal(np.bincount(targets), np.bincount(reference.target))
    assert images.shape[1:] == (1, 28, 28)
    # reduced again, each is one of scikit-learn's (bilinear enlarging blurs a little)
    inside = (images * 0.32 + 0.22)[:, :, 2:-2, 2:-2]
    small = torch.nn.functional.interpolate(inside, size=(8, 8), mode="area")[:, 0].flatten(1)
    originals = torch.from_numpy(reference.images).flatten(1).float() / 16
    nearest = torch.cdist(small, originals).argmin(1)
    assert (torch.from_numpy(reference.target)[nearest] == targets).float().mean() > 0.99
    train = torch.cat([loader.samples[i][0] for i in range(1438)])
    assert abs(train.mean()) < 0.05
    assert abs(train.std() - 1) < 0.05


def test_test_part_does_not_depend_on_the_seed(data_dir):
    one, two = (
        torch.cat([t for _, t in DigitsDataLoader(str(data_dir), seed=s).for_subset("test")])
        for s in (1, 2)
    )
    assert torch.equal(one, two)


def test_digits_are_read_with_scikit_learn_once(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: pytest.fail("read again"))
    assert len(DigitsDataLoader(str(data_dir)).dataset) == 1438
    whole = (data_dir / "digits.npz").read_bytes()
    other_bits = whole[:2000] + bytes(200) + whole[2200:]
    method = whole.index(b"PK\1\2") + 10  # of compression, by a number
    other_method = whole[:method] + b"\x63" + whole[method + 1 :]
    for content in (b"PK damaged", b"", whole[:3000], other_bits, other_method):
        (tmp_path / "digits.npz").write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            len(DigitsDataLoader(str(tmp_path)).dataset)


@pytest.mark.parametrize(
    ("loader", "files", "place"),
    [
        (MnistDataLoader, "train-images-idx3-ubyte", "MNIST/raw"),
        (FashionMnistDataLoader, "train-images-idx3-ubyte", "FashionMNIST/raw"),
        (Cifar10DataLoader, "the folder cifar-10-batches-py", ""),
    ],
)
def test_failed_download_names_the_missing_files(loader, files, place, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(UserError, match=files) as caught:
        len(loader(str(tmp_path)).dataset)
    assert f"into {tmp_path / place}, or" in str(caught.value)


@pytest.mark.parametrize(
    ("loader", "folder"), [(MnistDataLoader, "mnist"), (FashionMnistDataLoader, "fashion_mnist")]
)
def test_mnist_equals_torchvisions(loader, folder, kata_data):
    from torchvision import datasets
    from torchvision.transforms import Compose, Normalize, ToTensor

    ours = loader(str(kata_data / folder), batch_size=500).for_subset("test")
    pipeline = Compose([ToTensor(), Normalize(loader.mean, loader.std)])
    dataset = getattr(datasets, loader.name)(
        kata_data / folder, train=False, transform=pipeline, download=True
    )
    reference = DataLoader(dataset, batch_size=500)
    assert len(ours) == len(reference)
    for (data, target), (expected, labels) in zip(ours, reference, strict=True):
        torch.testing.assert_close(data, expected)
        assert torch.equal(target, labels)


def test_data_without_a_validation_part_is_an_error(data_dir):
    with pytest.raises(UserError, match="set validation_split"):
        len(DigitsDataLoader(str(data_dir), subset="val").dataset)
    assert len(DigitsDataLoader(str(data_dir), subset="val", validation_split=50).dataset) == 50
