"""Copies across subsets are found whatever was done to the file; photos that only resemble each
other are not.
"""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data_loader.image_folder import ImageFolderDataLoader

CHANGES = {
    "compressed": lambda image: image,
    "turned": lambda image: image.rotate(90, expand=True),
    "half a turn": lambda image: image.rotate(180),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "smaller": lambda image: image.resize((image.width * 2 // 3, image.height * 2 // 3)),
    "all of it": lambda image: image.rotate(270, expand=True).transpose(0).resize((100, 120)),
}


def part(number, fixture):
    """A grey photo of a part with scratches; in a fixture, all but these is at the same place."""
    generator = np.random.default_rng(0 if fixture else number)
    image = Image.new("L", (160, 140), 90)
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, size = generator.integers(0, 110), generator.integers(0, 100), generator.integers(50)
        draw.ellipse((x, y, x + size, y + size), fill=int(generator.integers(40, 220)))
    own = np.random.default_rng(1000 + number)
    for _ in range(3):
        x, y = own.integers(0, 150), own.integers(0, 130)
        draw.line((x, y, x + own.integers(-40, 40), y + own.integers(-40, 40)), fill=250, width=2)
    noise = own.normal(0, 4, (140, 160))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def make(folder, fixture, count=30):
    for number in range(count):
        subset = "train" if number < count * 2 // 3 else "val"
        place = folder / subset / ("NG" if number % 2 else "OK")
        place.mkdir(parents=True, exist_ok=True)
        part(number, fixture).save(place / f"{number}.png")
    return folder


def report(folder):
    loader = ImageFolderDataLoader(str(folder), image_size=64, channels=1, batch_size=4)
    return [line for line in loader.check() if "look" in line]


@pytest.mark.parametrize("fixture", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found(tmp_path, change, fixture):
    folder = make(tmp_path / "parts", fixture)
    copy = CHANGES[change](Image.open(folder / "train" / "OK" / "4.png"))
    content = io.BytesIO()
    copy.save(content, "JPEG", quality=60)
    (folder / "val" / "OK" / "other.jpg").write_bytes(content.getvalue())
    (line,) = report(folder)
    assert "val: 1 image looks like a copy of train's" in line
    assert "other.jpg of " in line
    assert line.endswith("4.png")


@pytest.mark.parametrize("fixture", [False, True])
def test_parts_that_resemble_each_other_are_no_copies(tmp_path, fixture):
    assert report(make(tmp_path / "parts", fixture, 60)) == []


def test_equal_images_and_images_without_contrast_are_not_near_copies(tmp_path):
    folder = make(tmp_path / "parts", False)
    shutil.copy(folder / "train" / "OK" / "4.png", folder / "val" / "OK" / "same.png")
    for number, subset in enumerate(("train", "val")):
        Image.new("L", (50, 60), 100 + number).save(folder / subset / "OK" / "flat.png")
    assert report(folder) == []


def test_copies_are_found_in_a_part_that_was_cut(tmp_path):
    """Where a validation split takes images out, the others keep their pixels."""
    folder = make(tmp_path / "parts", False, 30)
    shutil.rmtree(folder / "val")
    numbers = (2, 4, 6, 8, 10, 12)
    for number in numbers:
        copy = Image.open(folder / "train" / "OK" / f"{number}.png").rotate(180)
        copy.save(folder / "train" / "OK" / f"copy{number}.jpg", quality=60)
    loader = ImageFolderDataLoader(
        str(folder), image_size=64, channels=1, batch_size=4, validation_split=0.5
    )
    names = [Path(path).stem for path in loader.split_validation().paths]
    divided = sum((str(number) in names) != (f"copy{number}" in names) for number in numbers)
    assert divided > 1
    assert [line for line in loader.check() if f"val: {divided} images look like copies" in line]
