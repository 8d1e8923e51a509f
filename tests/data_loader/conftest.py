"""What tests of data loaders share."""

import pickle  # the format that the data set comes in

import numpy as np
import pytest

from data_loader import cache


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A folder in CIFAR-10's format with a few images; each class has its own colour."""
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    return write_cifar(tmp_path / "data")


def write_cifar(data_dir):
    folder = data_dir / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        labels = generator.permutation(np.arange(40) % 10)
        base = (labels[:, None] * 25 + np.array([0, 90, 180])) % 256
        images = np.repeat(base, 1024, axis=1) + generator.integers(-10, 10, (40, 3072))
        data = {"data": images.clip(0, 255).astype(np.uint8), "labels": labels.tolist()}
        with open(folder / name, "wb") as file:
            pickle.dump(data, file)
    with open(folder / "batches.meta", "wb") as file:
        pickle.dump({"label_names": list("abcdefghij")}, file)
    return data_dir


def count_reads(monkeypatch):
    """The list to which the path of each file is added that is decoded for the first time."""
    paths, examine = [], cache.examine

    def counted(path, **settings):
        paths.append(path)
        return examine(path, **settings)

    monkeypatch.setattr(cache, "examine", counted)
    return paths
