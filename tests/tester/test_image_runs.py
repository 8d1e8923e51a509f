"""Tests and predictions of runs on image folders, compared with Pillow and the network itself."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import test as test_script
from model.model import LeNet
from tests.conftest import save_images


@pytest.fixture
def run(image_config, train, tmp_path):
    """A run on images normalised by their own mean and std, and its folder of images."""
    folder = tmp_path / "parts"
    save_images(folder / "train", {"NG": 12, "OK": 30})
    save_images(folder / "val", {"NG": 5, "OK": 5})
    save_images(folder / "test", {"NG": 6, "OK": 7})
    return train(image_config(folder, normalize="data", balance="loss")), folder


def expected(run, files):
    """Probabilities by hand: Pillow's image, the checkpoint's mean and std, the network itself."""
    state = torch.load(run / "model_best.pth", weights_only=True)
    model = LeNet(num_classes=2)
    model.load_state_dict(state["state_dict"])
    mean, std = state["input"]["mean"][0], state["input"]["std"][0]
    inputs = []
    for file in files:
        with Image.open(file) as image:
            grey = torch.from_numpy(np.array(image.convert("L")))[None, None].float()
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
