"""Cached and reduced images, compared with Pillow and with reading the files again."""

import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from data_loader import cache
from data_loader.image_folder import ImageFolderDataLoader
from data_loader.images import read_image
from data_loader.transforms import PRESETS, side_to_read
from tests.conftest import assert_same, save_images
from tests.data_loader.conftest import count_reads
from utils.errors import UserError


@pytest.fixture
def folder(tmp_path):
    save_images(tmp_path / "data" / "train", {"NG": 6, "OK": 10}, size=(50, 60))
    return tmp_path / "data"


def image_loader(folder, **arguments):
    return ImageFolderDataLoader(
        str(folder), **({"image_size": 12, "batch_size": 8, "cache": "disk"} | arguments)
    )


def kept_files(folder):
    return sorted(path.name for path in folder.with_name(f"{folder.name}.cache").iterdir())


def test_later_run_uses_the_cache_file(folder, monkeypatch):
    first = image_loader(folder, normalize="data")
    expected, report = list(first), first.check()
    assert f"kept in {folder}.cache" in report[-1]
    read = count_reads(monkeypatch)
    again = image_loader(folder, normalize="data")
    assert_same(list(again), expected)
    assert again.check() == report
    assert not read
    moved = folder.rename(folder.with_name("moved"))
    folder.with_name("data.cache").rename(folder.with_name("moved.cache"))
    assert_same(list(image_loader(moved, normalize="data")), expected)
    assert not read


DAMAGE = {  # and how many files are then decoded again
    "content": 1,
    "time": 1,
    "added": 1,
    "removed": 0,
    "size": 16,
    "channels": 16,
    "truncated": 1,
    "emptied": 16,
    "deleted": 16,
    "index": 16,
    "flipped_index": 16,
}


@pytest.mark.parametrize("change", DAMAGE)
def test_only_what_changed_is_decoded_again(folder, monkeypatch, change):
    list(image_loader(folder))
    place, settings = folder / "train" / "NG" / "0.png", {}
    data, index = (
        folder.with_name("data.cache") / name
        for name in reversed(kept_files(folder))
        if name.endswith(("bin", "json"))
    )
    if change == "content":
        Image.new("RGB", (60, 50), "red").save(place)
    elif change == "time":
        os.utime(place, (1, 1))
    elif change == "added":
        Image.new("RGB", (60, 50), "red").save(place.with_name("new.png"))
    elif change == "removed":
        place.unlink()
    elif change == "size":
        settings = {"image_size": 10}
    elif change == "channels":
        settings = {"channels": 1}
    elif change == "deleted":
        data.unlink()
    else:
        damaged = index if "index" in change else data
        content = damaged.read_bytes()
        start = content.index(b'"content"') + 300 if "index" in change else 0  # in a row
        digit = b"8" if content[start : start + 1] == b"7" else b"7"
        changed = content[:start] + digit + content[start + 1 :]
        shorter = b"" if change == "emptied" else content[:-10]
        damaged.write_bytes(changed if "flipped" in change else shorter)
    read = count_reads(monkeypatch)
    ours = list(image_loader(folder, **settings))
    assert len(read) == DAMAGE[change]
    assert_same(ours, list(image_loader(folder, cache=None, **settings)))
    read.clear()
    assert_same(list(image_loader(folder, **settings)), ours)
    assert not read
    changed = change in ("content", "time", "added", "truncated")
    assert len(kept_files(folder)) == (3 if changed else 2)  # what nothing uses is deleted


@pytest.mark.parametrize("workers", [0, 2])
def test_flipped_byte_of_a_kept_image_is_noticed_and_its_file_decoded(folder, caplog, workers):
    expected = list(image_loader(folder))
    [data] = folder.with_name("data.cache").glob("*.bin")
    content = bytearray(data.read_bytes())
    content[5000] ^= 1
    data.write_bytes(content)
    cache._warn_once.cache_clear()
    assert_same(list(image_loader(folder, num_workers=workers)), expected)
    if not workers:
        assert "is damaged: such images are decoded again" in caplog.text


def test_many_small_additions_end_in_one_file(folder, monkeypatch):
    for number in range(cache.MOST_PACKS + 2):
        image = Image.new("RGB", (60, 50), (number, 0, 0))
        image.save(folder / "train" / "OK" / f"new{number}.png")
        read = count_reads(monkeypatch)
        ours = list(image_loader(folder))
        assert len(read) == (1 if number else 17)
        assert len(list(folder.with_name("data.cache").glob("*.bin"))) <= cache.MOST_PACKS
    assert_same(ours, list(image_loader(folder, cache=None)))


def test_interrupted_check_goes_on_where_it_was(folder, monkeypatch):
    examine, count = cache.examine, itertools.count()

    def interrupted(path, **settings):
        if next(count) == 9:
            raise KeyboardInterrupt
        return examine(path, **settings)

    monkeypatch.setattr(cache, "cores", lambda: 1)
    monkeypatch.setattr(cache, "examine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        image_loader(folder, cache=None).check()
    monkeypatch.setattr(cache, "examine", examine)
    read = count_reads(monkeypatch)
    image_loader(folder, cache=None).check()
    assert len(read) == 16 - 9


def test_cache_file_that_is_truncated_meanwhile_is_not_read(folder):
    """Reading beyond the end of a mapped file kills the process."""
    expected = list(image_loader(folder))
    loader = image_loader(folder)
    contents = loader.samples.contents
    with open(contents.images.paths[0], "r+b") as file:
        file.truncate(5000)
    contents.images = cache.KeptImages(contents.images.paths[0].parent, contents.records)
    assert_same(list(loader), expected)


def test_two_processes_write_the_cache_at_the_same_time(folder, monkeypatch):
    """The second process does everything before the first one has finished its file."""
    expected = list(image_loader(folder, cache=None))
    shutil.rmtree(folder.with_name("data.cache"))
    decode, process = cache.Reading.decode, os.getpid()

    def decode_slowly(*arguments, **options):
        monkeypatch.setattr(cache.Reading, "decode", decode)
        yield from decode(*arguments, **options)
        monkeypatch.setattr(os, "getpid", lambda: process + 1)
        assert_same(list(image_loader(folder)), expected)
        monkeypatch.setattr(os, "getpid", lambda: process)

    monkeypatch.setattr(cache.Reading, "decode", decode_slowly)
    assert_same(list(image_loader(folder)), expected)
    assert_same(list(image_loader(folder)), expected)
    assert len(kept_files(folder)) == 2


def test_auto_keeps_files_and_uses_memory_if_the_disk_is_full(folder, monkeypatch):
    loader = image_loader(folder, cache="auto")
    expected = list(loader)
    assert isinstance(loader.samples.contents.images, cache.KeptImages)
    assert f"the decoded images are kept in {folder}.cache" in loader.check()[-1]
    assert len(kept_files(folder)) == 2
    free = cache.free_disk(folder.with_name("data.cache"))
    assert free == pytest.approx(shutil.disk_usage(folder).free, rel=0.1)
    monkeypatch.setattr(cache, "free_disk", lambda place: 0)
    loader = image_loader(folder, cache="auto")  # nothing more is needed
    assert_same(list(loader), expected)
    assert isinstance(loader.samples.contents.images, cache.KeptImages)
    shutil.rmtree(folder.with_name("data.cache"))
    loader = image_loader(folder, cache="auto")
    assert_same(list(loader), expected)
    assert isinstance(loader.samples.contents.images, list)
    assert "kept in memory: 0 MB are free in " in loader.check()[-1]
    assert kept_files(folder) == ["index.json"]
    whole = 16 * 50 * 60 * 3  # from the headers alone
    monkeypatch.setattr(cache, "free_disk", lambda place: 4 * whole - 1)
    shutil.rmtree(folder.with_name("data.cache"))
    assert isinstance(
        image_loader(folder, cache="auto", image_size=40).samples.contents.images, list
    )
    monkeypatch.setattr(cache, "free_disk", lambda place: 4 * whole)
    shutil.rmtree(folder.with_name("data.cache"))
    kept = image_loader(folder, cache="auto", image_size=40).samples.contents.images
    assert isinstance(kept, cache.KeptImages)


def test_auto_decodes_in_each_epoch_if_there_is_no_room(folder, monkeypatch):
    expected = list(image_loader(folder, cache=None))
    shutil.rmtree(folder.with_name("data.cache"))
    folder.with_name("data.cache").write_text("a file in its place")
    loader = image_loader(folder, cache="auto")
    assert_same(list(loader), expected)
    assert "the decoded images are kept in memory: " in loader.check()[-2]
    monkeypatch.setattr(cache, "free_memory", lambda: 4 * 10_000)
    loader = image_loader(folder, cache="auto")
    assert_same(list(loader), expected)
    assert "the images are decoded in each epoch: they would take 0 MB" in loader.check()[-2]
    assert f"every start reads every file, as {folder}.cache" in loader.check()[-1]
    with pytest.raises((UserError, OSError)):
        list(image_loader(folder, cache="disk"))


def test_damaged_files_are_reported_from_the_cache_too(folder):
    (folder / "train" / "OK" / "empty.png").write_bytes(b"")
    first, later = (
        [line for line in image_loader(folder).check() if "empty.png" in line] for _ in range(2)
    )
    assert first == later
    assert "empty.png: is empty" in first[0]


def test_free_memory_is_the_systems():
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert cache.free_memory() == pytest.approx(
        int(lines["MemAvailable"].split()[0]) * 1024, rel=0.2
    )


JPEGS = {
    "plain": {},
    "progressive": {"progressive": True},
    "coarse": {"subsampling": 2, "quality": 30},
    "fine": {"subsampling": 0, "quality": 98},
    "optimised": {"optimize": True},
}


def photo(height, width):
    """Something smooth, like a photograph."""
    noise = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(height))
    grown = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)[0]
    return Image.fromarray((grown.permute(1, 2, 0) * 255).byte().numpy())


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("turned", [None, 3, 6])
def test_fast_jpeg_decoder_equals_pillow(tmp_path, kind, channels, turned):
    original = photo(61, 83).convert("L" if channels == 1 else "RGB")
    exif = Image.Exif()
    if turned:
        exif[0x0112] = turned
    original.save(tmp_path / "a.jpg", exif=exif, **JPEGS[kind])
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.array(ImageOps.exif_transpose(image))
    ours = read_image(tmp_path / "a.jpg", channels)
    assert np.array_equal(ours.permute(1, 2, 0).numpy().squeeze(), expected)


@pytest.mark.parametrize(
    ("size", "side"), [((640, 500), 64), ((640, 500), 200), ((300, 500), 129), ((700, 100), 45)]
)
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_large_image_is_reduced_while_reading(tmp_path, size, side, suffix):
    """As Pillow resizes the whole image; for a JPEG, decoded at a fraction of its size, nearly."""
    path = tmp_path / f"a{suffix}"
    photo(*size).save(path)
    whole = Image.open(path).convert("RGB")
    scale = side / min(whole.size)
    expected = np.asarray(
        whole.resize(
            (round(whole.width * scale), round(whole.height * scale)), Image.Resampling.BILINEAR
        )
    )
    ours = read_image(path, 3, side).permute(1, 2, 0).numpy()
    assert ours.shape == expected.shape
    assert min(ours.shape[:2]) == side
    assert np.abs(ours.astype(int) - expected).mean() < (1.5 if suffix == ".jpg" else 1e-9)
    # never enlarged, and not reduced if it is not far larger
    for enough in (10_000, min(size), min(size) // 2):
        assert torch.equal(read_image(path, 3, enough), read_image(path, 3))


FLIP, CROP = v2.RandomHorizontalFlip(), v2.RandomResizedCrop(28)


@pytest.mark.parametrize(
    ("transforms", "side"),
    [
        (PRESETS["none"]((28, 20)), 56),
        (PRESETS["imagenet"]((28, 28)), 64),
        (PRESETS["inspection"]((28, 28)), 56),
        ({"train": [FLIP, CROP], "eval": []}, 56),
        ({"train": [CROP], "eval": [v2.Resize(40), v2.CenterCrop(28)]}, 80),
        ({"train": [v2.Resize([30, 50])], "eval": []}, 100),
        ({"train": [v2.RandomCrop(28)], "eval": []}, None),  # counts in pixels of the whole image
        ({"train": [CROP], "eval": [v2.CenterCrop(100)]}, None),
        ({"train": [lambda image: image, CROP], "eval": []}, None),
        ({"train": [v2.Resize(None, max_size=30)], "eval": []}, None),
    ],
)
def test_side_to_read(transforms, side):
    assert side_to_read(transforms, (28, 28 if side != 56 else 20)) == side


def test_reducing_before_resizing_changes_little(tmp_path):
    """Compared with torchvision, which resizes the whole image at once."""
    for number in range(4):
        (tmp_path / "train" / "a").mkdir(parents=True, exist_ok=True)
        photo(300 + number, 400).save(tmp_path / "train" / "a" / f"{number}.png")
    loader = image_loader(
        tmp_path,
        image_size=40,
        shuffle=False,
        cache="ram",
        normalize={"mean": [0.0] * 3, "std": [1.0] * 3},
    )
    whole = v2.Compose(
        [v2.PILToTensor(), v2.Resize((40, 40)), v2.ToDtype(torch.float32, scale=True)]
    )
    expected = torch.stack([whole(Image.open(path)) for path in loader.paths])
    assert (next(iter(loader))[0] - expected).abs().mean() < 0.01
    assert max(loader.samples.contents.images[0].shape) < 120
