"""Presets and lists of transforms, compared with torchvision's own pipelines."""

import sys

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from data_loader.image_folder import ImageFolderDataLoader
from data_loader.transforms import IMAGENET, PRESETS
from parse_config import SOURCES, ConfigParser
from tests.conftest import save_pictures
from utils.check import fit
from utils.errors import ConfigError, UserError
from utils.lookup import Source
from utils.randomness import seeded

PICTURE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 50)).astype(np.uint8))
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
        {"type": "RandomRotation", "args": {"degrees": 10, "interpolation": "bilinear", "fill": [1, 2, 3]}},
        {"type": "RandomApply", "args": {"p": 0.7, "transforms": [{"type": "GaussianBlur", "args": {"kernel_size": 3}}]}},
    ],
    "eval": [{"type": "CenterCrop", "args": {"size": [30, 30]}}],
}


def loader_of(config, **arguments):
    return ConfigParser(config).init_obj("data_loader", **arguments)


def faults(config):
    with pytest.raises(ConfigError) as caught:
        ConfigParser(config)
    return caught.value.faults


@pytest.mark.parametrize("preset", REFERENCES)
def test_presets_are_the_pipelines_of_torchvision(tmp_path, preset):
    arrays = save_pictures(tmp_path / "train", {"a": 3, "b": 2}, size=(40, 50))
    loader = ImageFolderDataLoader(str(tmp_path), image_size=28, transforms=preset, seed=4)
    train, evaluation = (v2.Compose([*transforms, *LAST]) for transforms in REFERENCES[preset])
    for position, array in enumerate(arrays.values()):
        picture = torch.from_numpy(array).permute(2, 0, 1)
        with seeded(4, "train", 7, position):
            expected = train(picture)
        torch.testing.assert_close(loader.dataset[(7, position, 0)][0], expected)
        torch.testing.assert_close(loader.of_subset("train").dataset[(7, position, 0)][0], evaluation(picture))
        torch.testing.assert_close(loader.prepare(picture), evaluation(picture))


def test_lists_from_a_config_are_built_as_torchvision_would(tmp_path, pictures):
    array = save_pictures(tmp_path / "train", {"a": 1, "b": 1}, size=(40, 50))["a/0.png"]
    loader = loader_of(pictures(tmp_path, channels=3, transforms=MIXED), seed=2)
    picture = torch.from_numpy(array).permute(2, 0, 1)
    blur = v2.RandomApply([v2.GaussianBlur(3)], p=0.7)
    rotation = v2.RandomRotation(10, interpolation=v2.InterpolationMode.BILINEAR, fill=[1, 2, 3])
    train = v2.Compose([v2.RandomVerticalFlip(), rotation, blur, v2.Resize((28, 28)), *LAST])
    for epoch in range(5):
        with seeded(2, "train", epoch, 0):
            expected = train(picture)
        torch.testing.assert_close(loader.dataset[(epoch, 0, 0)][0], expected)
    evaluation = v2.Compose([v2.CenterCrop(30), v2.Resize((28, 28)), *LAST])
    torch.testing.assert_close(loader.prepare(picture), evaluation(picture))


def test_ones_own_transform_comes_first(tmp_path, pictures, own_code, monkeypatch):
    own_code(
        "own_transforms",
        "from torch import nn\n"
        "class RandomInvert(nn.Module):\n"
        "    def __init__(self, level: int = 7):\n"
        "        super().__init__()\n"
        "        self.level = level\n"
        "    def forward(self, picture):\n"
        "        return picture * 0 + self.level\n",
    )
    transforms = {"eval": [{"type": "RandomInvert", "args": {"level": 51}}]}
    given = {"mean": [0.0] * 3, "std": [1.0] * 3}
    config = pictures(tmp_path, channels=3, transforms=transforms, normalize=given)
    names = Source.own_names
    own = {"data_loader/transforms.py": {"RandomInvert": "own_transforms"}}
    monkeypatch.setattr(Source, "own_names", lambda source: own.get(source.own) or names(source))
    torch.testing.assert_close(loader_of(config).prepare(PICTURE), torch.full((3, 28, 28), 0.2))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (28, 28)])
def test_every_preset_takes_every_picture(preset, channels, size):
    loader = ImageFolderDataLoader("nowhere", image_size=[20, 36], channels=channels, transforms=preset)
    picture = PICTURE[:channels, :1, :1].expand(-1, *size)
    assert loader.prepare(picture).shape == (channels, 20, 36)
    for transform in PRESETS[preset]((20, 36))["train"]:
        picture = transform(picture)
    assert picture.shape[0] == channels
    assert picture.dtype == torch.uint8


def test_the_middle_of_imagenets_evaluation_has_no_black_border():
    white = torch.full((3, 10, 30), 255, dtype=torch.uint8)
    for size in ([20, 36], [36, 20], 28):
        assert ImageFolderDataLoader("nowhere", image_size=size, transforms="imagenet").prepare(white).min() > 1


def test_given_normalisation(tmp_path):
    given = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    expected = v2.Normalize(given["mean"], given["std"])(PICTURE / 255)
    torch.testing.assert_close(ImageFolderDataLoader("nowhere", [40, 50], normalize=given).prepare(PICTURE), expected)
    for wrong in ({"mean": [0.1]}, {"mean": [0.1] * 3, "std": [0.2]}, {"mean": [0.1] * 3, "std": [0.0] * 3}, {}):
        with pytest.raises(UserError, match="3 numbers each"):
            ImageFolderDataLoader(str(tmp_path), normalize=wrong)


def test_a_preset_in_a_config_does_not_import_torchvision(pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)  # importing it would fail
    assert loader_of(pictures("nowhere", transforms="imagenet")).transforms == "imagenet"


PLACE = "data_loader.args.transforms"


@pytest.mark.parametrize(
    ("transforms", "said"),
    [
        ("imagnet", f'{PLACE}: "imagnet" should be one of "imagenet", "inspection", "none"'),
        (3, f"{PLACE}: 3 should be"),
        ([], f"{PLACE}: [] should be"),
        (["RandomInvert"], f"{PLACE}: [] should be"),
        ({"val": []}, 'an object whose keys are one of "train", "eval"'),
        ({"train": "Resize"}, f"{PLACE}: "),
        ({"train": ["RandomHorizontalFlp"]}, f'{PLACE}.train.0: there is no "RandomHorizontalFlp"; did you mean'),
        ({"eval": [3]}, f"{PLACE}.eval.0: should be a name or"),
        ({"eval": [{"args": {}}]}, f"{PLACE}.eval.0: should be a name or"),
        ({"eval": ["Resize"]}, f'{PLACE}.eval.0.args: Resize needs "size"'),
        (
            {"eval": [{"type": "Resize", "args": {"sise": 3}}]},
            f'{PLACE}.eval.0.args.sise: Resize takes no "sise"; did you mean',
        ),
        ({"eval": [{"type": "Resize", "args": {"size": "3"}}]}, f'{PLACE}.eval.0.args.size: "3" should be'),
        ({"eval": [{"type": "Resize", "arg": {}}]}, f"{PLACE}.eval.0.arg: unknown key"),
        ({"train": [{"type": "RandomRotation", "args": {"degrees": "5"}}]}, '"5" should be a number or a list'),
        ({"train": ["os.system"]}, f"{PLACE}.train.0: "),
        ({"train": ["Pipeline"]}, f'{PLACE}.train.0: "Pipeline" is no Module'),
        (
            {"train": [{"type": "RandomApply", "args": {"transforms": ["RandmInvert"]}}]},
            f'{PLACE}.train.0.args.transforms.0: there is no "RandmInvert"',
        ),
    ],
)
def test_each_fault_inside_transforms(pictures, transforms, said):
    found = faults(pictures("nowhere", transforms=transforms))
    assert any(said in fault for fault in found), found


def test_faults_of_all_lists_come_at_once(pictures):
    wrong = {"train": ["RandomInvrt", "Resize"], "eval": [{"type": "CenterCrop", "args": {"size": 8, "padding": 1}}]}
    assert len(faults(pictures("nowhere", transforms=wrong))) == 3


def test_transforms_are_no_section_of_their_own(digits):
    assert faults(digits({"transforms": "imagenet"})) == [
        "transforms: belongs into the arguments of another section, as data_loader.args.transforms"
    ]


@pytest.mark.parametrize("name", [name for name in SOURCES["transforms"].library_names() if name[0].isupper()])
def test_the_defaults_of_every_transform_of_torchvision_fit_a_config(name):
    for parameter in SOURCES["transforms"].signature(getattr(v2, name)).parameters.values():
        default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        if isinstance(default, bool | int | float | str | list | None):
            fit(default, parameter.annotation)
