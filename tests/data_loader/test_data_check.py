"""The report on image folders before training, and training without the bad files."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from base import BaseDataLoader
from data_loader.image_folder import ImageFolderDataLoader
from tests.base.test_data_loader import NumbersLoader
from tests.conftest import last_checkpoint, save_images
from tests.data_loader.conftest import count_reads
from utils.errors import UserError

BAD = {
    "empty.jpg": "is empty",
    "truncated.jpg": "is truncated",
    "text.jpg": "is not an image",
    "bomb.png": "is too large to be decoded: 400000000 pixels",
    "secret.png": "permission denied",
}
GOOD = (
    "deep.png",
    "cmyk.jpg",
    "palette.png",
    "animated.gif",
    "turned.jpg",
    "dot.png",
    "不良品 写真①.png",
)


@pytest.fixture
def troubled(tmp_path):
    """Twelve kinds of unusual and bad files in train/NG, among ordinary images."""
    save_images(tmp_path / "train", {"NG": 6, "OK": 12})
    save_images(tmp_path / "val", {"NG": 3, "OK": 4}, size=(30, 21))
    place, generator = tmp_path / "train" / "NG", np.random.default_rng(5)
    noise = [
        Image.fromarray(generator.integers(0, 256, (40, 40, 3)).astype(np.uint8)) for _ in range(9)
    ]
    (place / "empty.jpg").write_bytes(b"")
    noise[0].save(place / "truncated.jpg")
    (place / "truncated.jpg").write_bytes((place / "truncated.jpg").read_bytes()[:-700])
    (place / "text.jpg").write_text("Only words.")
    Image.fromarray(generator.integers(0, 65_536, (40, 40)).astype(np.uint16)).save(
        place / "deep.png"
    )
    noise[1].convert("CMYK").save(place / "cmyk.jpg")
    noise[2].quantize(16).save(place / "palette.png", transparency=3)
    noise[3].save(place / "animated.gif", save_all=True, append_images=noise[4:6])
    exif = Image.Exif()
    exif[0x0112] = 8
    noise[6].save(place / "turned.jpg", exif=exif)
    Image.new("RGB", (1, 1), (9, 8, 7)).save(place / "dot.png")
    Image.new("1", (20_000, 20_000)).save(place / "bomb.png")
    noise[7].save(place / "secret.png")
    (place / "secret.png").chmod(0)
    noise[8].save(place / "不良品 写真①.png")
    (place / "Thumbs.db").write_bytes(b"x")
    return tmp_path


def readable(name, folder):
    return name not in BAD or (
        name == "secret.png" and os.access(folder / "train" / "NG" / name, os.R_OK)
    )


def check(folder, **arguments):
    settings = {"image_size": 28, "cache": None} | arguments
    return ImageFolderDataLoader(str(folder), **settings).check()


def test_twelve_kinds_of_bad_files_are_reported(troubled):
    lines = check(troubled)
    bad = [name for name in BAD if not readable(name, troubled)]
    for name in bad:
        assert [BAD[name] in line for line in lines if name in line] == [True], name
    assert len([line for line in lines if line.startswith("left out: ")]) == len(bad)
    assert not [line for line in lines for name in GOOD if name in line]
    assert lines[0] == f"train: {30 - len(bad)} images (NG {18 - len(bad)}, OK 12)"
    assert lines[1] == "val: 7 images (NG 3, OK 4)"
    assert [line for line in lines if "Thumbs.db" in line and "files ignored" in line]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_skips_bad_files(troubled, image_config, train, workers):
    run = train(image_config(troubled, transforms="inspection", num_workers=workers))
    assert last_checkpoint(run)["epoch"] == 2
    served = ImageFolderDataLoader(str(troubled), image_size=28, shuffle=False).paths
    names = {os.path.basename(path) for path in served if "NG" in path}
    everything = {*BAD, *GOOD, *(f"{i}.png" for i in range(6))}
    assert names == {name for name in everything if readable(name, troubled)}


def test_on_bad_file_stop_stops_the_run(troubled, image_config, train, capsys):
    (troubled / "val" / "OK" / "late.jpg").write_bytes(b"")
    assert train(image_config(troubled, on_bad_file="stop"), code=2) is None
    error = capsys.readouterr().err
    assert "empty.jpg: is empty" in error
    assert "Traceback" not in error
    with pytest.raises(UserError) as caught:
        check(troubled, on_bad_file="stop")
    for name in [*(name for name in BAD if not readable(name, troubled)), "late.jpg"]:
        assert name in str(caught.value)
    for name in BAD:
        (troubled / "train" / "NG" / name).unlink()
    (troubled / "val" / "OK" / "late.jpg").unlink()
    assert check(troubled, on_bad_file="stop")[0] == "train: 25 images (NG 13, OK 12)"


def test_report_of_a_clean_folder_has_only_counts(tmp_path):
    save_images(tmp_path / "train", {"a": 3, "b": 5})
    save_images(tmp_path / "test", {"a": 2, "b": 1}, size=(9, 9))
    assert check(tmp_path) == ["train: 8 images (a 3, b 5)", "test: 3 images (a 2, b 1)"]


def test_copies_in_other_subsets_or_classes_are_found_by_their_pixels(tmp_path):
    save_images(tmp_path / "train", {"a": 3, "b": 5})
    save_images(tmp_path / "val", {"a": 3, "b": 3}, size=(9, 9))
    train, val = tmp_path / "train", tmp_path / "val"
    Image.open(train / "a" / "1.png").save(val / "a" / "leak.bmp")
    Image.open(train / "b" / "1.png").save(train / "a" / "doubt.tif")
    shutil.copy(train / "b" / "2.png", train / "b" / "copy.png")
    with Image.open(train / "b" / "3.png") as image:
        image.putpixel((0, 0), (1, 2, 3))
        image.save(val / "b" / "other.png")
    lines = [line.replace(str(tmp_path), "") for line in check(tmp_path)[2:]]
    assert lines == [
        "the same image in 2 subsets (train, val): /train/a/1.png, /val/a/leak.bmp",
        "the same image in 2 classes (a, b): /train/a/doubt.tif, /train/b/1.png",
        "1 images are copies of another of the same subset and class",
        "val: 1 image looks like a copy of train's, turned, mirrored, resized or compressed again: "
        "/val/b/other.png of /train/b/3.png",
    ]


@pytest.mark.parametrize("arguments", [{"validation_split": 0.5}, {"split": [0.5, 0.5, 0.0]}])
def test_copies_are_found_across_parts_of_one_folder(tmp_path, arguments):
    root = tmp_path if "split" in arguments else tmp_path / "train"
    save_images(root, {"a": 20})
    for index in range(20):
        shutil.copy(root / "a" / f"{index}.png", root / "a" / f"copy {index}.png")
    loader = ImageFolderDataLoader(str(tmp_path), image_size=28, **arguments)
    lines = loader.check()
    parts = [
        [os.path.basename(path) for path in part.paths]
        for part in (loader, loader.split_validation())
    ]
    train, val = ({name.removeprefix("copy ") for name in part} for part in parts)
    copies = [line for line in lines if "in 2 subsets" in line]
    assert len(copies) == len(train & val) > 3
    assert lines[:2] == [
        f"{s}: {len(p)} images (a {len(p)})" for s, p in zip(("train", "val"), parts, strict=True)
    ]


def test_long_list_of_copies_is_shortened(tmp_path):
    save_images(tmp_path / "train", {"a": 30})
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    lines = check(tmp_path)
    assert lines[2] == "there is only one class (a), so there is nothing to learn"
    assert len(lines) == 3 + 20 + 1
    assert lines[-1] == "and 10 more images in several subsets or classes"


def test_missing_classes_and_imbalance_are_reported(tmp_path):
    save_images(tmp_path / "train", {"NG": 2, "OK": 21, "scrap": 2})
    save_images(tmp_path / "val", {"NG": 2}, size=(9, 9))
    (tmp_path / "train" / "unused").mkdir()
    assert check(tmp_path) == [
        "train: 25 images (NG 2, OK 21, scrap 2)",
        "of 25 training images 21 are of OK and 2 of NG; data_loader.args.balance, "
        '"sampler" or "loss", compensates for that',
        "val: 2 images (NG 2, OK 0, scrap 0)",
        "val has no images of OK, scrap",
        f"1 folders of {tmp_path / 'train'} contain no images: unused",
    ]
    save_images(tmp_path / "train", {"NG": 3, "scrap": 3})
    assert not [line for line in check(tmp_path) if "balance" in line]


def test_subset_without_readable_images_is_reported(tmp_path):
    save_images(tmp_path / "train", {"a": 2})
    (tmp_path / "test" / "a").mkdir(parents=True)
    (tmp_path / "test" / "a" / "x.png").write_bytes(b"")
    lines = check(tmp_path)
    assert lines[1] == "test: 0 images (a 0)"
    assert "x.png: is empty" in lines[-1]


def test_each_file_is_decoded_once(tmp_path, monkeypatch):
    save_images(tmp_path / "train", {"a": 5, "b": 5})
    paths = count_reads(monkeypatch)
    loader = ImageFolderDataLoader(
        str(tmp_path), image_size=28, validation_split=0.3, normalize="data"
    )
    loader.check()
    list(loader), list(loader.split_validation()), list(loader)
    assert len(paths) == 10


def test_other_loaders_report_nothing():
    assert NumbersLoader().check() == []
    assert NumbersLoader().paths is None
    assert NumbersLoader().class_weights is None
    assert BaseDataLoader.check.__doc__
