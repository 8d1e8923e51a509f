"""Tests and predictions of runs on image folders, compared with Pillow and the network itself."""

import csv
import itertools
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import test as test_script
from data_loader.image_folder import ImageFolderDataLoader
from model.model import LeNet
from tester.predict import find_images
from tests.conftest import save_images
from utils.errors import UserError


@pytest.fixture
def run(image_config, train, tmp_path):
    """A run on images normalised by their own mean and std, and its folder of images."""
    folder = tmp_path / "parts"
    save_images(folder / "train", {"NG": 12, "OK": 30})
    save_images(folder / "val", {"NG": 5, "OK": 5})
    save_images(folder / "test", {"NG": 6, "OK": 7})
    return train(image_config(folder, normalize="data", balance="loss")), folder


def expected(run, files, pixels=lambda image: np.array(image.convert("L"))):
    """Probabilities by hand: Pillow's image, the checkpoint's mean and std, the network itself."""
    state = torch.load(run / "model_best.pth", weights_only=True)
    model = LeNet(num_classes=2)
    model.load_state_dict(state["state_dict"])
    mean, std = state["input"]["mean"][0], state["input"]["std"][0]
    inputs = []
    for file in files:
        with Image.open(file) as image:
            grey = torch.from_numpy(pixels(image))[None, None].float()
        resized = torch.nn.functional.interpolate(grey, (28, 28), mode="bilinear", antialias=True)
        inputs.append((resized[0].round() / 255 - mean) / std)
    with torch.no_grad():
        return model.eval()(torch.stack(inputs)).exp().numpy()


def predicted(file):
    with open(file, newline="", encoding="utf-8-sig") as table:
        return list(csv.DictReader(table))


def test_evaluation_uses_the_recorded_normalisation(run):
    run, folder = run
    for file in (folder / "train").rglob("*.png"):  # the training images are dark now
        Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(file)
    assert test_script.main(["-r", str(run)]) == 0
    rows = sorted(predicted(run / "test" / "predictions.csv"), key=lambda row: row["sample"])
    ours = np.array([[float(value) for value in list(row.values())[-2:]] for row in rows])
    files = sorted((folder / "test").rglob("*.png"), key=str)
    assert np.abs(ours - expected(run, files)).max() < 2e-3
    assert json.loads((run / "test" / "result.json").read_text())["n"] == 13


def test_prediction_of_individual_images_equals_the_test(run):
    run, folder = run
    assert test_script.main(["-r", str(run), "--images", str(folder / "test")]) == 0
    table = predicted(run / "test" / "images" / "predictions.csv")
    rows = {row["picture"]: list(row.values()) for row in table}
    files = sorted((folder / "test").rglob("*.png"), key=str)
    for file, probabilities in zip(files, expected(run, files), strict=True):
        ours = [float(value) for value in rows[str(file)][-2:]]
        assert ours == pytest.approx(probabilities.tolist(), abs=2e-3)


def test_folder_of_individual_images_follows_the_rule_of_training(tmp_path, caplog):
    place = tmp_path / "train" / "A"
    save_images(tmp_path / "train", {"A": 3, "B/deep": 2, "@eaDir": 1, ".hidden": 1})
    (place / "loop").symlink_to(tmp_path)
    (place / "gone.png").symlink_to("nowhere")
    files = list(find_images([str(tmp_path / "train")]))
    bad = place / "gone.png"
    loader = ImageFolderDataLoader(str(tmp_path), image_size=8)
    assert [str(file) for file in files if file != bad] == loader.paths
    assert bad in files  # to be reported when it is read
    assert "3 folders left out" in caplog.text
    assert list(find_images([str(place / "0.png")])) == [place / "0.png"]
    for path in list(place.glob("?.png")):
        shutil.copy(path, place / f"{path.stem}.jpg")
    with pytest.raises(UserError, match="6 of 7 images have partners"):
        list(find_images([str(place)]))
    for missing in (tmp_path / "nowhere", bad):
        with pytest.raises(UserError, match=f"there is no {missing}"):
            list(find_images([str(missing)]))


def test_names_in_shift_jis_are_tested_and_predicted(image_config, train, tmp_path, capsys):
    """Folders and files as an old Windows names them: readable in every table and log."""
    name, folder = os.fsdecode("不良表".encode("cp932")), tmp_path / "parts"
    for subset in ("train", "val", "test"):
        save_images(folder / subset, {name: 6, "良品": 9})
        (folder / subset / name / "0.png").rename(folder / subset / name / f"{name}.png")
    config = image_config(folder, validation_split=0)
    run = train(config | {"inspection": {"target": "不良表"}})
    assert test_script.main(["-r", str(run)]) == 0
    arguments = ["--images", str(folder / "test"), "--heatmap"]
    assert test_script.main(["-r", str(run), *arguments]) == 0
    shown = str(folder / "test" / "不良表" / "不良表.png")
    tested, single = (
        predicted(run / "test" / place / "predictions.csv") for place in (".", "images")
    )
    assert {row["true"] for row in tested} == {"不良表", "良品"}
    for rows, key in ((tested, "sample"), (single, "picture")):
        assert [row[key] for row in rows].count(shown) == 1
        assert len(rows) == 15
    assert (run / "test" / "images" / "heatmaps" / "不良表.jpg").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    out = capsys.readouterr()
    assert "Traceback" not in out.out + out.err
    assert "--- Logging error ---" not in out.err


def test_images_of_12_bits_are_predicted_as_they_are_tested(image_config, train, tmp_path):
    """Also one by one, and without the training images, which say what the range is."""
    folder, generator = tmp_path / "parts", np.random.default_rng(0)
    for subset, name, index in itertools.product(("train", "val", "test"), ("NG", "OK"), range(4)):
        (folder / subset / name).mkdir(parents=True, exist_ok=True)
        array = generator.integers(0, 4000 if subset == "train" else 900, (28, 28))
        image = Image.fromarray((array // (1 + (name == "NG"))).astype(np.uint16))
        image.save(folder / subset / name / f"{index}.png")
    run = train(image_config(folder))
    assert test_script.main(["-r", str(run)]) == 0
    tested = predicted(run / "test" / "predictions.csv")
    shutil.rmtree(folder / "train")
    assert test_script.main(["-r", str(run), "--images", str(folder / "test")]) == 0
    single = predicted(run / "test" / "images" / "predictions.csv")
    files = sorted((folder / "test").rglob("*.png"))
    by_hand = expected(run, files, lambda image: (np.array(image) * (255 / 4095)).round())
    for rows in (tested, single):
        ours = np.array([[float(value) for value in list(row.values())[-2:]] for row in rows])
        assert np.abs(ours - by_hand).max() < 2e-4


@pytest.mark.parametrize("change", ["added", "no train"])
def test_run_keeps_its_classes_whatever_the_folders_are(image_config, train, tmp_path, change):
    """After the training a folder comes before the others, or the training images are gone."""
    folder = tmp_path / "parts"
    for subset in ("train", "val", "test"):
        save_images(folder / subset, {"NG": 6, "OK": 9})
    run = train(image_config(folder))
    assert test_script.main(["-r", str(run)]) == 0
    before = predicted(run / "test" / "predictions.csv")
    if change == "added":
        save_images(folder / "train", {"A": 3})
    else:
        shutil.rmtree(folder / "train")
    assert test_script.main(["-r", str(run)]) == 0
    assert predicted(run / "test" / "predictions.csv") == before


def test_loader_without_the_keyword_subset_serves_the_test_part(own_code, digits, train, data_dir):
    own_code(
        "explicit_loader",
        "from data_loader.data_loaders import DigitsDataLoader\n"
        "class Explicit(DigitsDataLoader):\n"
        "    def __init__(self, data_dir, batch_size=50, shuffle=True, validation_split=0.0,\n"
        "                 training=True):\n"
        "        super().__init__(data_dir, batch_size=batch_size,\n"
        "                         validation_split=validation_split)\n",
    )
    section = {"type": "explicit_loader.Explicit", "args": {"data_dir": str(data_dir)}}
    run = train(digits({"test_data_loader": section}))
    assert test_script.main(["-r", str(run)]) == 0
    assert json.loads((run / "test" / "result.json").read_text())["n"] == 359
