"""Presets and lists of transforms, compared with torchvision's own pipelines."""

import sys

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from data_loader.image_folder import ImageFolderDataLoader
from data_loader.transforms import IMAGENET, PRESETS
from parse_config import ConfigParser
from tests.conftest import save_images
from utils.config.lookup import Source
from utils.config.sections import SOURCES
from utils.config.types import coerce
from utils.engine.randomness import seeded
from utils.errors import ConfigError, UserError

IMAGE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 50)).astype(np.uint8))
LAST = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*IMAGENET[3])]
REFERENCES = {
    "imagenet": (
        [v2.RandomResizedCrop((28, 28)), v2.RandomHorizontalFlip()],
        [v2.Resize(32), v2.CenterCrop(28)],
    ),
    "inspection": (
        [
            v2.Resize((28, 28)),
            v2.RandomRotation(5),
            v2.ColorJitter(brightness=0.5, hue=0.3),
            v2.RandomInvert(),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
        ],
        [v2.Resize((28, 28))],
    ),
    "none": ([v2.Resize((28, 28))], [v2.Resize((28, 28))]),
}
MIXED = {
    "train": [
        "RandomVerticalFlip",
        {
            "type": "RandomRotation",
            "args": {"degrees": 10, "interpolation": "bilinear", "fill": [1, 2, 3]},
        },
        {
            "type": "RandomApply",
            "args": {
                "p": 0.7,
                "transforms": [{"type": "GaussianBlur", "args": {"kernel_size": 3}}],
            },
        },
    ],
    "eval": [{"type": "CenterCrop", "args": {"size": [30, 30]}}],
}


def load(config, **arguments):
    return ConfigParser(config).init_obj("data_loader", **arguments)


def config_errors(config):
    with pytest.raises(ConfigError) as caught:
        ConfigParser(config)
    return caught.value.errors


@pytest.mark.parametrize("preset", REFERENCES)
def test_presets_equal_torchvisions_pipelines(tmp_path, preset):
    arrays = save_images(tmp_path / "train", {"a": 3, "b": 2}, size=(40, 50))
    loader = ImageFolderDataLoader(str(tmp_path), image_size=28, transforms=preset, seed=4)
    train, evaluation = (v2.Compose([*transforms, *LAST]) for transforms in REFERENCES[preset])
    for position, array in enumerate(arrays.values()):
        image = torch.from_numpy(array).permute(2, 0, 1)
        with seeded(4, "train", 7, position):
            expected = train(image)
        torch.testing.assert_close(loader.dataset[(7, position, 0)][0], expected)
        torch.testing.assert_close(
            loader.for_subset("train").dataset[(7, position, 0)][0], evaluation(image)
        )
        torch.testing.assert_close(loader.prepare(image), evaluation(image))


def test_lists_from_a_config_equal_torchvision(tmp_path, image_config):
    array = save_images(tmp_path / "train", {"a": 1, "b": 1}, size=(40, 50))["a/0.png"]
    loader = load(image_config(tmp_path, channels=3, transforms=MIXED), seed=2)
    image = torch.from_numpy(array).permute(2, 0, 1)
    blur = v2.RandomApply([v2.GaussianBlur(3)], p=0.7)
    rotation = v2.RandomRotation(10, interpolation=v2.InterpolationMode.BILINEAR, fill=[1, 2, 3])
    train = v2.Compose([v2.RandomVerticalFlip(), rotation, blur, v2.Resize((28, 28)), *LAST])
    for epoch in range(5):
        with seeded(2, "train", epoch, 0):
            expected = train(image)
        torch.testing.assert_close(loader.dataset[(epoch, 0, 0)][0], expected)
    evaluation = v2.Compose([v2.CenterCrop(30), v2.Resize((28, 28)), *LAST])
    torch.testing.assert_close(loader.prepare(image), evaluation(image))


def test_own_transform_is_preferred_to_torchvisions(tmp_path, image_config, own_code, monkeypatch):
    own_code(
        "own_transforms",
        "from torch import nn\n"
        "class RandomInvert(nn.Module):\n"
        "    def __init__(self, level: int = 7):\n"
        "        super().__init__()\n"
        "        self.level = level\n"
        "    def forward(self, image):\n"
        "        return image * 0 + self.level\n",
    )
    transforms = {"eval": [{"type": "RandomInvert", "args": {"level": 51}}]}
    given = {"mean": [0.0] * 3, "std": [1.0] * 3}
    config = image_config(tmp_path, channels=3, transforms=transforms, normalize=given)
    names = Source.own_names
    own = {("data_loader/transforms.py",): {"RandomInvert": "own_transforms"}}
    monkeypatch.setattr(
        Source, "own_names", lambda source: own.get(source.folders) or names(source)
    )
    torch.testing.assert_close(load(config).prepare(IMAGE), torch.full((3, 28, 28), 0.2))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (28, 28)])
def test_every_preset_takes_every_image(preset, channels, size):
    loader = ImageFolderDataLoader(
        "nowhere", image_size=[20, 36], channels=channels, transforms=preset
    )
    image = IMAGE[:channels, :1, :1].expand(-1, *size)
    assert loader.prepare(image).shape == (channels, 20, 36)
    for transform in PRESETS[preset]((20, 36))["train"]:
        image = transform(image)
    assert image.shape[0] == channels
    assert image.dtype == torch.uint8


def test_imagenet_evaluation_has_no_black_border():
    white = torch.full((3, 10, 30), 255, dtype=torch.uint8)
    for size in ([20, 36], [36, 20], 28):
        loader = ImageFolderDataLoader("nowhere", image_size=size, transforms="imagenet")
        assert loader.prepare(white).min() > 1


def test_given_normalisation(tmp_path):
    given = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    expected = v2.Normalize(given["mean"], given["std"])(IMAGE / 255)
    torch.testing.assert_close(
        ImageFolderDataLoader("nowhere", [40, 50], normalize=given).prepare(IMAGE), expected
    )
    for wrong in (
        {"mean": [0.1]},
        {"mean": [0.1] * 3, "std": [0.2]},
        {"mean": [0.1] * 3, "std": [0.0] * 3},
        {},
    ):
        with pytest.raises(UserError, match="3 numbers each"):
            ImageFolderDataLoader(str(tmp_path), normalize=wrong)


def test_preset_in_a_config_does_not_import_torchvision(image_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)  # importing it would fail
    assert load(image_config("nowhere", transforms="imagenet")).transforms == "imagenet"


PLACE = "data_loader.args.transforms"


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        (
            "imagnet",
            f'{PLACE}: "imagnet" should be one of "imagenet", "inspection", "none" or an object',
        ),
        (3, f"{PLACE}: 3 should be"),
        ([], f"{PLACE}: [] should be"),
        (["RandomInvert"], f"{PLACE}: [] should be"),
        ({"val": []}, f'{PLACE}: {{"val": []}} should be'),
        ({"val": []}, 'whose keys are one of "train", "eval"'),
        ({"train": "Resize"}, f"{PLACE}: "),
        (
            {"train": ["RandomHorizontalFlp"]},
            f'{PLACE}.train.0: there is no "RandomHorizontalFlp"; did you mean',
        ),
        ({"eval": [3]}, f"{PLACE}.eval.0: should be a name or"),
        ({"eval": [{"args": {}}]}, f"{PLACE}.eval.0: should be a name or"),
        ({"eval": ["Resize"]}, f'{PLACE}.eval.0.args: Resize needs "size"'),
        (
            {"eval": [{"type": "Resize", "args": {"sise": 3}}]},
            f'{PLACE}.eval.0.args.sise: Resize takes no "sise"; did you mean',
        ),
        (
            {"eval": [{"type": "Resize", "args": {"size": "3"}}]},
            f'{PLACE}.eval.0.args.size: "3" should be',
        ),
        ({"eval": [{"type": "Resize", "arg": {}}]}, f"{PLACE}.eval.0.arg: unknown key"),
        (
            {"train": [{"type": "RandomRotation", "args": {"degrees": "5"}}]},
            f'{PLACE}.train.0.args.degrees: "5" should be a whole number or a number or a list',
        ),
        ({"train": ["os.system"]}, f"{PLACE}.train.0: "),
        ({"train": ["Pipeline"]}, f'{PLACE}.train.0: "Pipeline" is not a Module'),
        (
            {"train": [{"type": "RandomApply", "args": {"transforms": ["RandmInvert"]}}]},
            f'{PLACE}.train.0.args.transforms.0: there is no "RandmInvert"',
        ),
    ],
)
def test_errors_inside_transforms(image_config, transforms, message):
    errors = config_errors(image_config("nowhere", transforms=transforms))
    assert any(message in error for error in errors), errors


def test_errors_of_all_lists_are_reported_together(image_config):
    wrong = {
        "train": ["RandomInvrt", "Resize"],
        "eval": [{"type": "CenterCrop", "args": {"size": 8, "padding": 1}}],
    }
    assert len(config_errors(image_config("nowhere", transforms=wrong))) == 3


def test_transforms_are_not_a_top_level_section(digits):
    assert config_errors(digits({"transforms": "imagenet"})) == [
        "transforms: belongs into another section, as data_loader.args.transforms"
    ]


@pytest.mark.parametrize(
    "name", [name for name in SOURCES["transforms"].library_names() if name[0].isupper()]
)
def test_defaults_of_torchvisions_transforms_fit_a_config(name):
    for parameter in SOURCES["transforms"].signature(getattr(v2, name)).parameters.values():
        default = (
            list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        )
        if isinstance(default, bool | int | float | str | list | None):
            coerce(default, parameter.annotation)
