"""What a GPU gets: small batches, finished there, and the same as on the CPU."""

import numpy as np
import pytest
import torch
from PIL import Image

from base.base_data_loader import BaseDataLoader, ChosenBatches
from data_loader.datasets import ImagesInMemory, sent
from data_loader.image_folder import ImageFiles, ImageFolderDataLoader
from data_loader.mask_folder import MaskFolderDataLoader
from tests.conftest import assert_same, build, save_images
from trainer.features import first_samples
from trainer.workers import choose_workers

GPU = torch.device("cuda", 0)


class Transfer:
    """In place of the engine's: leaves batches where they are, and keeps them as they came."""

    def __init__(self, device, finish):
        self.device, self.finish, self.came = device, finish, []

    def __call__(self, batch):
        self.came.append(batch)
        return self.finish(batch)


@pytest.fixture(autouse=True)
def _no_gpu_is_needed(monkeypatch):
    monkeypatch.setattr("base.base_data_loader.Transfer", Transfer)
    # without a GPU torch's loader does not pin, and says so
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def images(folder, **settings):
    save_images(folder / "train", {"NG": 5, "OK": 6})
    settings = {"image_size": 16, "batch_size": 4, "seed": 3, "cache": None} | settings
    return ImageFolderDataLoader(str(folder), **settings)


def masks(folder, **settings):
    generator = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / "train" / kind).mkdir(parents=True)
    for number in range(9):
        pixels = generator.integers(0, 255, (20, 24, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "train" / "images" / f"{number}.png")
        mask = Image.fromarray((pixels[..., 0] > 99).astype(np.uint8))
        mask.save(folder / "train" / "masks" / f"{number}.png")
    settings = {"image_size": 16, "batch_size": 4, "seed": 3} | settings
    return MaskFolderDataLoader(str(folder), classes={"background": 0, "crack": 1}, **settings)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
@pytest.mark.parametrize("make", [images, masks])
@pytest.mark.parametrize("workers", [0, 1])
def test_images_travel_as_bytes_and_arrive_as_on_the_cpu(make, workers, tmp_path):
    plain, moved = (make(tmp_path / name, num_workers=workers) for name in ("one", "two"))
    assert plain.pin_memory is False  # only for a GPU that trains
    moved.to(GPU)
    assert moved.pin_memory is True
    count = 0
    for ours, theirs in zip(moved, plain, strict=True):
        assert ours[0].dtype == torch.float32
        assert ours[0].is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-6)
        assert torch.equal(ours[1], theirs[1])
        count += 1
    assert [batch[0].dtype for batch in moved.finish.came] == [torch.uint8] * count
    whole = first_samples(moved, 2)
    torch.testing.assert_close(whole[0], first_samples(plain, 2)[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moved.example, plain.example, rtol=1e-6, atol=1e-6)
    # the loader of another subset starts anew
    assert not isinstance(moved.for_subset("train").finish, Transfer)


def test_float_images_of_a_users_transform_travel_as_floats(tmp_path):
    def brighter(image):
        return image.float() / 255 * 0.5 + 0.25

    plain, moved = (
        images(tmp_path / name, transforms={"train": [brighter], "eval": []})
        for name in ("one", "two")
    )
    moved.to(GPU)
    for ours, theirs in zip(moved, plain, strict=True):
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-6)
    assert moved.finish.came[0][0].dtype == torch.float32


def test_batches_of_a_users_own_collate_are_finished_already(tmp_path):
    class Noisy(ImageFiles):
        def collate(self, samples):
            batch, targets = super().collate(samples)
            return batch + 1, targets

    class Loader(ImageFolderDataLoader):
        def build_dataset(self, subset, augment):
            dataset = super().build_dataset(subset, augment)
            dataset.__class__ = Noisy
            return dataset

    save_images(tmp_path / "train", {"NG": 5, "OK": 6})
    settings = {"image_size": 16, "batch_size": 4, "seed": 3, "cache": None}
    plain, moved = (Loader(str(tmp_path), **settings) for _ in range(2))
    moved.to(GPU)
    for ours, theirs in zip(moved, plain, strict=True):
        assert_same(ours, theirs)


def test_data_that_are_on_the_gpu_get_no_workers(monkeypatch):
    monkeypatch.setattr(ImagesInMemory, "to", lambda samples, device: True)
    samples = ImagesInMemory(
        torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.arange(8), ["a"], [0.5], [0.5]
    )
    loader = BaseDataLoader(samples, num_workers=0)
    loader.to(GPU)
    assert loader.in_memory
    assert not loader.pin_memory


def test_numbers_are_sent_from_pinned_memory(monkeypatch):
    """From other memory the copy to a GPU waits."""
    pinned, moved = torch.ones(3), []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned)
    monkeypatch.setattr(torch.Tensor, "to", lambda *a, **k: moved.append((*a, k)) or a[0])
    assert sent(torch.zeros(3), torch.device("cpu")).sum() == 0
    assert sent(torch.zeros(3), GPU) is pinned
    assert moved == [(pinned, GPU, {"non_blocking": True})]


def test_data_that_are_there_already_are_not_moved_again(monkeypatch):
    samples = ImagesInMemory(
        torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.arange(8), ["a"], [0.5], [0.5]
    )
    monkeypatch.setattr("data_loader.datasets._free_memory", lambda device: 0)
    assert samples.to(torch.device("cpu"))


def test_chosen_batches_are_finished(tmp_path):
    loader = images(tmp_path)
    plain = list(ChosenBatches(loader, [[0, 3], [5]]))
    loader.to(GPU)
    chosen = ChosenBatches(loader, [[0, 3], [5]])
    assert len(chosen) == 2
    for ours, theirs in zip(chosen, plain, strict=True):
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-6)


def test_only_loaders_whose_data_are_elsewhere_get_workers(digits, monkeypatch):
    """Data on a GPU cannot be served by other processes."""
    monkeypatch.setattr("trainer.workers.fitting_workers", lambda *costs: 2)
    trainer = build(digits())
    files, on_gpu = (BaseDataLoader(trainer.data_loader.samples, batch_size=8) for _ in range(2))
    on_gpu.in_memory = True
    settings = trainer.task, trainer.engine, trainer.train_steps
    choose_workers(trainer.model, [files, on_gpu], *settings)
    assert [files.num_workers, on_gpu.num_workers] == [2, 0]
