"""Images of more than 8 bits, all scaled from one range: compared with numpy."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from data_loader.image_folder import ImageFolderDataLoader
from data_loader.images import BadImage, common_range, read_image
from tests.conftest import last_checkpoint, save_images
from tests.data_loader.conftest import count_reads
from utils.config.config import ConfigParser
from utils.config.resolve import adopt_network
from utils.errors import UserError

SIZE = 20


def save_deep(folder, low, high, dtype, suffix=".png", count=4):
    """Noise images; the first holds `low`, the last `high`. Returns the arrays by path."""
    generator, arrays = np.random.default_rng(0), {}
    for name in ("NG", "OK"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            array = generator.uniform(low, high, (SIZE, SIZE)).astype(dtype)
            array[0, 0] = low if (name, index) == ("NG", 0) else array[0, 0]
            array[0, 1] = high if (name, index) == ("OK", count - 1) else array[0, 1]
            Image.fromarray(array).save(folder / name / f"{index}{suffix}")
            arrays[str(folder / name / f"{index}{suffix}")] = array
    return arrays


def image_loader(folder, **arguments):
    plain = {"image_size": SIZE, "channels": 1, "normalize": {"mean": [0.0], "std": [1 / 255]}}
    return ImageFolderDataLoader(
        str(folder), **(plain | {"batch_size": 64, "shuffle": False} | arguments)
    )


def pixels(loader):
    """Path -> uint8 (H, W) as served."""
    data = torch.cat([images for images, _ in loader])[:, 0].round().byte().numpy()
    return dict(zip(loader.paths, data, strict=True))


def scaled(array, low, high):
    array = array.astype(np.float64)
    return np.round((np.clip(array, low, high) - low) * 255 / (high - low))


KINDS = {  # lowest, highest, type, suffix, expected range
    "10 bits": (0, 1023, np.uint16, ".png", (0, 1023)),
    "12 bits": (16, 4001, np.uint16, ".png", (0, 4095)),
    "14 bits": (0, 16_000, np.uint16, ".tif", (0, 16383)),
    "16 bits": (200, 65535, np.uint16, ".tif", (0, 65535)),
    "8 bits in 16": (0, 200, np.uint16, ".png", (0, 255)),
    "32 bits": (10, 100_000, np.int32, ".tif", (10, 100_000)),
    "signed": (-500, 500, np.int32, ".tif", (-500, 500)),
    "shares": (0.0, 1.02, np.float32, ".tif", (0, 1)),
    "floats": (0.0, 65535.0, np.float32, ".tif", (0, 65535)),
    "heights": (-3.5, 7.25, np.float32, ".tif", (-3.5, 7.25)),
    "narrow": (5.0, 5.25, np.float32, ".tif", (5.0, 5.25)),
}


@pytest.mark.parametrize("cache", ["disk", None])
@pytest.mark.parametrize("kind", KINDS)
def test_one_range_for_the_whole_data_set(tmp_path, kind, cache):
    low, high, dtype, suffix, expected = KINDS[kind]
    arrays = save_deep(tmp_path / "train", low, high, dtype, suffix)
    # validation images are scaled alike, and clipped
    beyond = min(high * 2, 65_535) if dtype == np.uint16 else high * 2
    val = save_deep(tmp_path / "val", low + (high - low) // 2, beyond, dtype, suffix)
    for _ in range(2):  # the second time from the index, or the cache
        loader = image_loader(tmp_path, cache=cache)
        for part, files in ((loader.split_validation(), val), (loader, arrays)):
            for path, shown in pixels(part).items():
                assert np.abs(shown - scaled(files[path], *expected)).max() <= (
                    1 if dtype == np.float32 else 0
                )
        assert loader.input["range"] == list(expected)
    if expected != (0, 1):
        assert len(np.unique(np.stack(list(pixels(loader).values())))) > 120
    assert torch.equal(
        loader.read(loader.paths[0])[0], torch.from_numpy(pixels(loader)[loader.paths[0]])
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0, 0]], [0, 255]),
        ([[3, 255], [1, 256]], [0, 1023]),
        ([[0.2, 0.4]], [0, 1]),
        ([[-0.04, 1.04], [0.0, 1.0]], [0, 1]),
        ([[0.0, 1.1]], [0, 1.1]),
        ([[0, 4000], [0.0, 1.0]], [0, 4000]),  # integers and floats
        ([[7.0, 7.0]], [7, 8]),
        ([[70_000, 70_000]], [70_000, 70_001]),
        ([], None),
    ],
)
def test_rule_of_the_range(values, expected):
    assert common_range(values) == expected


def test_report_says_the_levels(tmp_path):
    save_deep(tmp_path / "train", 0, 4000, np.uint16)
    save_deep(tmp_path / "val", 0, 5000, np.uint16)
    lines = image_loader(tmp_path).check()
    assert lines[2:4] == [
        "train: 8 of 8 images have more than 8 bits, values 0 to 4,000, scaled from 0..4,095: "
        "4,096 of 65,536 levels",
        lines[3],
    ]
    assert lines[3].startswith("val: 8 of 8 images have more than 8 bits, values 0 to 5,000")
    assert "images have values beyond, which are clipped" in lines[3]
    given = image_loader(tmp_path, pixel_range=[0, 8191]).check()
    assert "scaled from 0..8,191: 8,192 of 65,536 levels" in given[2]
    assert "beyond" not in given[3]


def test_given_range_is_used_and_checked(tmp_path):
    arrays = save_deep(tmp_path / "train", 0, 4000, np.uint16)
    loader = image_loader(tmp_path, pixel_range=[1000, 3000])
    for path, shown in pixels(loader).items():
        assert np.array_equal(shown, scaled(arrays[path], 1000, 3000))
    assert loader.input["range"] == [1000, 3000]
    with pytest.raises(UserError, match="must ascend"):
        image_loader(tmp_path, pixel_range=[5, 5])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_make_a_file_bad(tmp_path, value):
    arrays = save_deep(tmp_path / "train", 0.0, 1.0, np.float32, ".tif")
    path = next(iter(arrays))
    arrays[path][3, 3] = value
    Image.fromarray(arrays[path]).save(path)
    for cache in ("ram", None, None):
        loader = image_loader(tmp_path, cache=cache)
        [line] = [line for line in loader.check() if line.startswith("left out: ")]
        assert line.startswith(f"left out: {path}: ")
        assert "NaN or infinite" in line
        assert path not in loader.paths
        assert loader.input["range"] == [0, 1]
    with pytest.raises(BadImage, match="NaN or infinite"):
        read_image(path, 1, pixel_range=(0, 1))


def test_images_of_8_bits_stay_as_they_are_and_are_read_once(tmp_path, monkeypatch):
    arrays = save_images(tmp_path / "train", {"a": 6, "b": 6}, size=(SIZE, SIZE))
    paths = count_reads(monkeypatch)
    loader = ImageFolderDataLoader(str(tmp_path), image_size=SIZE, cache="ram")
    loader.check()
    assert len(paths) == 12
    for path, image in zip(loader.paths, loader.samples.contents.images, strict=True):
        name = path.removeprefix(f"{tmp_path / 'train'}/")
        assert np.array_equal(image.permute(1, 2, 0).numpy(), arrays[name])
    assert loader.input["range"] is None
    assert not [line for line in loader.check() if "bits" in line]


def test_8_bits_beside_more_bits(tmp_path):
    deep = save_deep(tmp_path / "train", 0, 4000, np.uint16)
    grey = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE)).astype(np.uint8)
    for name in ("a.png", "z.png"):
        Image.fromarray(grey).save(tmp_path / "train" / "NG" / name)
    for cache in ("ram", None, "disk", "disk"):
        for path, shown in pixels(image_loader(tmp_path, cache=cache)).items():
            array = deep.get(path)
            assert np.array_equal(shown, grey if array is None else scaled(array, 0, 4095))


def test_more_bits_only_in_validation_are_refused_with_a_reason(tmp_path):
    save_images(tmp_path / "train", {"NG": 3, "OK": 3})
    save_deep(tmp_path / "val", 0, 4000, np.uint16)
    for first in ("check", "val"):
        loader = image_loader(tmp_path)
        if first == "val":
            assert not loader.split_validation().samples.contents.files
        bad = [line for line in loader.check() if "more than 8 bits, unlike the training" in line]
        assert len(bad) == 8
    loader = image_loader(tmp_path, pixel_range=[0, 4095])
    assert len(loader.split_validation().paths) == 8


def test_new_file_changes_the_range_of_all(tmp_path, monkeypatch):
    save_deep(tmp_path / "train", 0, 1000, np.uint16)
    assert image_loader(tmp_path, cache=None).input["range"] == [0, 1023]
    new = tmp_path / "train" / "NG" / "new.png"
    Image.fromarray(np.full((SIZE, SIZE), 3000, np.uint16)).save(new)
    paths = count_reads(monkeypatch)
    loader = image_loader(tmp_path, cache=None)
    assert loader.input["range"] == [0, 4095]
    assert len(paths) == 1 + 9  # to find the range only the new one, then to scale all
    assert len(pixels(loader)) == 9
    paths.clear()
    assert image_loader(tmp_path, cache=None).input["range"] == [0, 4095]
    assert not paths


@pytest.mark.parametrize("trained_on", [{}, {"range": "file"}, {"range": None}, {"range": [5, 9]}])
def test_checkpoints_range_is_adopted(image_config, tmp_path, trained_on):
    state = {"classes": None, "input": {"shape": [1, 4, 4]} | trained_on, "config": None}
    config = ConfigParser(image_config(tmp_path))
    arguments = adopt_network(config, state, arch=False)["data_loader"]["args"]
    assert arguments["pixel_range"] == trained_on.get("range", "file")
    own = ConfigParser(image_config(tmp_path, pixel_range=[1, 2]))
    arguments = adopt_network(own, state, arch=False)["data_loader"]["args"]
    assert arguments["pixel_range"] == (trained_on.get("range") or [1, 2])
    unknown = adopt_network(config, state | {"input": None}, arch=False)
    assert unknown["data_loader"] == config["data_loader"]


def test_old_checkpoint_goes_on_with_the_old_decoding(tmp_path):
    """Each file by its own type, as before there was a range; and that is said."""
    arrays = save_deep(tmp_path / "train", 0, 4000, np.uint16)
    save_images(tmp_path / "val", {"NG": 2, "OK": 2})
    loader = image_loader(tmp_path, pixel_range="file")
    for path, shown in pixels(loader).items():
        assert np.array_equal(shown, scaled(arrays[path], 0, 65535))
    assert loader.input["range"] == "file"
    [line] = [line for line in loader.check() if "more than 8 bits" in line]
    assert "each is scaled by its own type" in line


def test_run_keeps_its_range(tmp_path, image_config, train, resume):
    save_deep(tmp_path / "parts" / "train", 0, 4000, np.uint16)
    save_deep(tmp_path / "parts" / "val", 0, 4000, np.uint16)
    run = train(image_config(tmp_path / "parts"), "--epochs", 1)
    state = last_checkpoint(run)
    assert state["input"]["range"] == [0, 4095]
    save_deep(tmp_path / "parts" / "train", 0, 60_000, np.uint16)
    resume(run, "--epochs", 2)
    state = last_checkpoint(run)
    assert state["input"]["range"] == [0, 4095]
    assert json.loads(json.dumps(state["config"]))["data_loader"]["args"]["pixel_range"] == [
        0,
        4095,
    ]
