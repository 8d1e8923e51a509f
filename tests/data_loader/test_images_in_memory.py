"""Images in memory, augmented a batch at a time."""

from functools import partial

import numpy as np
import pytest
import torch

from data_loader.data_loaders import Cifar10DataLoader
from data_loader.datasets import ImagesInMemory, flip, shift
from parse_config import ConfigParser
from tests.conftest import assert_same
from utils.engine.randomness import seeded

BATCH = (
    torch.arange(6 * 2 * 8 * 9, dtype=torch.int64).remainder(251).to(torch.uint8).view(6, 2, 8, 9)
)


def test_flip_mirrors_about_half_of_the_images():
    images = BATCH.repeat(50, 1, 1, 1)
    with seeded(1):
        flipped = flip(images)
    pairs = list(zip(flipped, images, strict=True))
    same = [torch.equal(one, other) for one, other in pairs]
    mirrored = [torch.equal(one, other.flip(-1)) for one, other in pairs]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 110 < sum(same) < 190


def test_shift_gives_all_crops_of_the_reflected_image():
    """Against numpy's padding."""
    seen = set()
    padded = np.pad(BATCH[0].numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect")
    crops = {(y, x): padded[:, y : y + 8, x : x + 9] for y in range(5) for x in range(5)}
    with seeded(2):
        moved = shift(BATCH[:1].expand(400, -1, -1, -1), pixels=2)
    for image in moved.numpy():
        seen.add(next(place for place, crop in crops.items() if np.array_equal(crop, image)))
    assert len(seen) == 25
    assert moved.dtype == torch.uint8


@pytest.mark.usefixtures("workers_for_memory")
def test_only_training_images_are_augmented_and_alike_with_any_workers(cifar):
    settings = {"batch_size": 16, "seed": 3, "validation_split": 0.2}
    loader = Cifar10DataLoader(str(cifar), **settings)
    validation = loader.split_validation()
    whole = loader.for_subset("train").samples
    first = validation.dataset.indices[:16].tolist()
    assert torch.equal(next(iter(validation))[0], whole.__getitems__(first)[0])
    other = Cifar10DataLoader(str(cifar), **settings, num_workers=2)
    plain = Cifar10DataLoader(str(cifar), **settings, flip=False, shift=0)
    for one, two, three in zip(loader, other, plain, strict=True):
        assert_same(one, two)
        assert not torch.equal(one[0], three[0])
        assert torch.equal(one[1], three[1])


def test_images_are_the_same_on_the_device_that_holds_them():
    images = ImagesInMemory(
        BATCH, torch.arange(6), ["a"], [0.5, 0.5], [0.2, 0.2], [flip, partial(shift, pixels=1)]
    )
    with seeded(7):
        expected = images.__getitems__([1, 4])
    assert images.to(torch.device("cpu"))
    with seeded(7):
        assert_same(images.__getitems__([1, 4]), expected)
    assert not images.deterministic


def test_images_that_need_over_a_quarter_of_the_gpu_stay_on_the_cpu(monkeypatch):
    size = BATCH.numel()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * size, 8 * size))
    images = ImagesInMemory(BATCH, torch.arange(6), ["a"], [0.5, 0.5], [0.2, 0.2])
    assert images.deterministic
    assert not images.to(torch.device("cuda"))
    assert images.images.device.type == "cpu"


def test_data_in_memory_starts_no_workers(digits):
    for number in ("auto", 2):
        in_memory = ConfigParser(digits({"data_loader.args.num_workers": number}))
        assert in_memory.init_obj("data_loader").num_workers == 0


def test_workers_that_are_not_started_are_mentioned(digits, train, capsys):
    for number, times in (0, 0), ("auto", 0), (2, 1):
        train(digits({"data_loader.args.num_workers": number, "trainer.len_epoch": 1}), "--check")
        shown = capsys.readouterr().out
        assert shown.count(f"num_workers {number}: none is started, as the data is") == times
