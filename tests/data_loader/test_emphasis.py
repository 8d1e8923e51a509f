"""Transforms that emphasise what matters, against numpy and OpenCV; the page that shows them."""

import html.parser
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_loader import show
from data_loader.image_folder import ImageFolderDataLoader
from data_loader.transforms import CropRegion, KeepRegions, LocalContrast, SubtractReference
from tests.conftest import save_images
from utils.errors import UserError

# made by OpenCV 5.0: createCLAHE(clipLimit, (tiles, tiles)).apply(source)
CLAHE = Path(__file__).with_name("clahe")


def picture(channels=3, size=(40, 60)):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (channels, *size), generator=generator, dtype=torch.uint8)


def test_region_is_cut_out():
    image = picture()
    assert torch.equal(CropRegion([0.25, 0.1, 0.75, 0.5])(image), image[:, 4:20, 15:45])
    assert CropRegion([0.5, 0.5, 0.501, 0.501])(image).shape == (3, 1, 1)


def test_all_but_some_regions_is_black(tmp_path):
    image = picture()
    kept = KeepRegions([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]])(image)
    expected = torch.zeros_like(image)
    expected[:, :20, :30], expected[:, 20:, 30:] = image[:, :20, :30], image[:, 20:, 30:]
    assert torch.equal(kept, expected)
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    kept = KeepRegions(mask=str(tmp_path / "mask.png"))(image)
    assert torch.equal(kept[:, 10:20], image[:, 10:20])
    assert kept.sum() == image[:, 10:20].sum()
    assert KeepRegions(mask=str(tmp_path / "mask.png"))(picture(1, (80, 120))).shape == (1, 80, 120)


def test_difference_from_a_reference(tmp_path):
    reference, image = picture(), picture().flip(2)
    Image.fromarray(reference.permute(1, 2, 0).numpy()).save(tmp_path / "empty.png")
    found = SubtractReference(str(tmp_path / "empty.png"), gain=0.5)(image)
    difference = image.numpy().astype(float) - reference.numpy()
    assert np.abs(found.numpy() - (128 + difference / 2).clip(0, 255)).max() <= 0.5
    same = SubtractReference(str(tmp_path / "empty.png"))(reference)
    assert (same == 128).all()


@pytest.mark.parametrize("name", ["2.0-8", "4.0-4", "40.0-3"])
def test_local_contrast_is_that_of_opencv(name):
    source = np.asarray(Image.open(CLAHE / "source.png"))
    clip, tiles = name.split("-")
    found = LocalContrast(float(clip), int(tiles))(torch.from_numpy(source.copy())[None])
    expected = np.asarray(Image.open(CLAHE / f"{name}.png")).astype(int)
    assert np.abs(found[0].numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CropRegion([0.5, 0, 0.5, 1]), r"\[left, top, right, bottom\]"),
        (lambda: CropRegion([10, 10, 50, 50]), "shares of width and height"),
        (lambda: KeepRegions(), "one of the two"),
        (lambda: SubtractReference("lost.png"), "lost.png: no such file"),
    ],
)
def test_mistakes_are_said(make, message):
    with pytest.raises(UserError, match=message):
        make()


class Pictures(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [dict(attributes)["src"]] if tag == "img" else []


@pytest.fixture
def config(tmp_path, image_config):
    save_images(tmp_path / "parts" / "train", {"NG": 3, "OK": 9})
    train = ["RandomHorizontalFlip", {"type": "CropRegion", "args": {"region": [0, 0, 0.5, 1]}}]
    chosen = {"train": train, "eval": train[1:]}
    file = tmp_path / "parts.json"
    file.write_text(json.dumps(image_config(tmp_path / "parts", transforms=chosen)), "utf-8")
    return file


def test_page_shows_what_the_network_sees(config, tmp_path, capsys):
    assert show.main(["-c", str(config), "-n", "2"]) == 0
    page = tmp_path / "parts.cache" / "show.html"
    assert capsys.readouterr().out == f"written: {page}\n"
    text = page.read_text("utf-8")
    assert text.index("<h2>NG</h2>") < text.index("<h2>OK</h2>")
    assert "CropRegion" in text
    pictures = Pictures()
    pictures.feed(text)
    assert len(pictures.found) == 2 * 2 * 5  # the file, in evaluation, in three epochs
    assert all(source.startswith("data:image/") for source in pictures.found)
    assert len(set(pictures.found)) > 2 * 2 * 2  # flipped ones differ


def test_page_of_other_data(digits, tmp_path, capsys):
    file = tmp_path / "digits.json"
    file.write_text(json.dumps(digits({})), "utf-8")
    assert show.main(["-c", str(file)]) == 2
    assert "-o FILE: DigitsDataLoader has no folder" in capsys.readouterr().err
    assert show.main(["-c", str(file), "-o", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text("utf-8").count("<h2>") == 10
    assert show.main(["-c", str(tmp_path / "none.json")]) == 2


def test_transforms_work_in_a_loader(tmp_path):
    save_images(tmp_path / "train", {"NG": 4, "OK": 4})
    steps = ["LocalContrast", {"type": "KeepRegions", "args": {"regions": [[0, 0, 1, 0.5]]}}]
    from utils.config.config import ConfigParser

    config = {
        "name": "x", "arch": "LeNet", "optimizer": "SGD", "trainer": {"epochs": 1},
        "loss": "nll_loss", "metrics": [],
        "data_loader": {
            "type": "ImageFolderDataLoader",
            "args": {"data_dir": str(tmp_path), "image_size": 20, "batch_size": 4,
                     "transforms": {"train": steps, "eval": steps}},
        },
    }  # fmt: skip
    loader = ConfigParser(config).init_obj("data_loader")
    assert isinstance(loader, ImageFolderDataLoader)
    images, _ = next(iter(loader))
    assert images.shape == (4, 3, 20, 20)
    assert (images[:, :, 12:] == images[:, :, 12:13, :1]).all()
