"""Images that are checked while they are read: as training on the same folder without the bad
files, except that a batch lacks what cannot be read.
"""

import logging

import pytest
import torch
from PIL import Image

from data_loader.image_folder import ImageFolderDataLoader
from tests.conftest import assert_same, save_images
from tests.data_loader.conftest import count_reads
from utils.errors import UserError


@pytest.fixture
def folder(tmp_path):
    save_images(tmp_path / "parts" / "train", {"NG": 9, "OK": 12}, size=(50, 60))
    save_images(tmp_path / "parts" / "val", {"NG": 3, "OK": 4}, size=(30, 30))
    for name in ("train/NG/0.png", "train/OK/5.png", "val/OK/1.png"):
        (tmp_path / "parts" / name).write_text("no image")
    return tmp_path / "parts"


def image_loader(folder, **arguments):
    settings = {"image_size": 12, "batch_size": 4, "data_check": "while-training", "shuffle": False}
    return ImageFolderDataLoader(str(folder), **(settings | arguments))


def targets_of(batches):
    return torch.cat([target for _, target in batches]).tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_left_out_of_their_batch_and_said_once(folder, caplog, workers):
    loader = image_loader(folder, num_workers=workers, shuffle=True)
    with caplog.at_level(logging.WARNING):
        first = list(loader)
    assert len(loader) == len(first) == 6
    if not workers:  # a worker has the log, too, but not this test's
        said = [line for line in caplog.messages if "left out" in line]
        assert [line.partition("train/")[2] for line in sorted(said)] == [
            "NG/0.png: is not an image, or its beginning is damaged",
            "OK/5.png: is not an image, or its beginning is damaged",
        ]
    again = image_loader(folder, num_workers=0, shuffle=True)
    assert_same(list(again), first)  # whether the index knows the files or not
    assert_same(list(loader), first)
    whole = image_loader(folder, data_check="before", cache=None)
    assert sorted(targets_of(first)) == sorted(targets_of(whole))
    assert sum(len(target) for _, target in first) == 19


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_found_while_training_is_known_at_the_next_start(folder, monkeypatch, workers):
    begun = image_loader(folder, num_workers=workers)
    assert "train: 0 of 21 images were read before" in " ".join(begun.check())
    assert begun.digest is None
    list(begun)
    begun.end_workers()
    read = count_reads(monkeypatch)
    later = image_loader(folder, data_check="before", cache=None)
    report = later.check()
    assert not read
    assert len([line for line in report if "left out" in line]) == 3
    assert not list(folder.with_name("parts.cache").glob("added*"))
    known = image_loader(folder)
    assert known.check() == report
    assert known.digest == later.digest
    assert not read


def test_training_starts_before_anything_is_read(folder, monkeypatch):
    read = count_reads(monkeypatch)
    loader = image_loader(folder)
    loader.check()
    assert sorted({path.split("parts/")[1].split("/")[0] for path in read}) == ["val"]
    assert loader.input["shape"] == [3, 12, 12]  # though the first file is bad
    assert len([path for path in read if "/train/" in path]) <= 3


def test_damaged_notes_of_workers_are_read_again(folder, monkeypatch):
    loader = image_loader(folder)
    list(loader)
    [notes] = folder.with_name("parts.cache").glob("added*")
    lines = notes.read_bytes().splitlines(keepends=True)
    assert len(lines) == 21
    notes.write_bytes(
        b"".join([lines[0].replace(b"train", b"trein"), *lines[1:-1], lines[-1][:40]])
    )
    read = count_reads(monkeypatch)
    image_loader(folder, data_check="before", cache=None).check()
    assert len(read) == 2 + 7  # and the validation images, which nobody has checked


def test_stop_stops_at_a_bad_file(folder):
    loader = image_loader(folder, on_bad_file="stop")
    (folder / "val" / "OK" / "1.png").unlink()
    loader.check()
    with pytest.raises(UserError, match=r"0\.png: is not an image"):
        list(loader)


def test_batch_of_bad_files_alone_is_said(folder):
    for number in range(9):
        (folder / "train" / "NG" / f"{number}.png").write_text("no image")
    with pytest.raises(UserError, match="no image of the batch can be read"):
        list(image_loader(folder))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalize": "data"}, 'normalize: .* it must be "imagenet"'),
        ({"cache": "disk"}, "cache: .* no images are kept"),
        ({"validation_split": 0.2}, "validation_split: .* set split"),
        ({"fold": [0, 5]}, "fold: .* set split"),
    ],
)
def test_what_needs_all_images_is_refused(folder, settings, message):
    with pytest.raises(UserError, match=message):
        image_loader(folder, **settings)


def test_more_than_8_bits_need_a_range(folder):
    Image.new("I;16", (30, 30), 4000).save(folder / "train" / "OK" / "deep.png")
    loader = image_loader(folder)
    loader.check()
    assert sum(len(target) for _, target in loader) == 19
    ranged = image_loader(folder, pixel_range=[0, 4095])
    assert sum(len(target) for _, target in ranged) == 20
