"""Whole runs on folders of pictures: what training recorded is what evaluation and prediction use."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import test as test_script
from model.model import LeNet
from tests.conftest import last_checkpoint, save_pictures


@pytest.fixture
def run(pictures, train, tmp_path):
    """A run on pictures normalised by their own mean and std, and its folder of pictures."""
    folder = tmp_path / "parts"
    save_pictures(folder / "train", {"NG": 12, "OK": 30})
    save_pictures(folder / "val", {"NG": 5, "OK": 5})
    save_pictures(folder / "test", {"NG": 6, "OK": 7})
    return train(pictures(folder, normalize="data", balance="loss")), folder


def expected(run, files):
    """Probabilities by hand: numpy's picture, the checkpoint's mean and std, the network itself."""
    state = torch.load(run / "model_best.pth", weights_only=True)
    model = LeNet(num_classes=2)
    model.load_state_dict(state["state_dict"])
    mean, std = state["input"]["mean"][0], state["input"]["std"][0]
    inputs = []
    for file in files:
        with Image.open(file) as picture:
            grey = torch.from_numpy(np.array(picture.convert("L")))[None, None]
        grown = torch.nn.functional.interpolate(grey.float(), (28, 28), mode="bilinear", antialias=True).round()
        inputs.append((grown[0] / 255 - mean) / std)
    with torch.no_grad():
        return model.eval()(torch.stack(inputs)).exp().numpy()


def predicted(file):
    with open(file, newline="", encoding="utf-8-sig") as table:
        return list(csv.DictReader(table))


def test_evaluation_uses_the_recorded_normalisation_whatever_the_data_are_now(run):
    run, folder = run
    for file in (folder / "train").rglob("*.png"):  # the training pictures of today are dark
        Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(file)
    assert test_script.main(["-r", str(run)]) == 0
    rows = predicted(run / "test" / "predictions.csv")
    p = expected(run, sorted((folder / "test").rglob("*.png"), key=str))
    ours = np.array([[float(v) for v in list(row.values())[-2:]] for row in sorted(rows, key=lambda r: r["sample"])])
    assert np.abs(ours - p).max() < 2e-3
    assert json.loads((run / "test" / "result.json").read_text())["n"] == 13


def test_prediction_of_loose_pictures_is_the_tests(run):
    run, folder = run
    assert test_script.main(["-r", str(run), "--images", str(folder / "test")]) == 0
    loose = {row["picture"]: row for row in predicted(run / "test" / "images" / "predictions.csv")}
    files = sorted((folder / "test").rglob("*.png"), key=str)
    for file, p in zip(files, expected(run, files), strict=True):
        row = list(loose[str(file)].values())
        assert [float(v) for v in row[-2:]] == pytest.approx(p.tolist(), abs=2e-3)


def test_a_run_goes_on_with_its_normalisation(run, resume):
    run, folder = run
    before = last_checkpoint(run)["input"]
    save_pictures(folder / "train", {"NG": 20, "OK": 31})
    resume(run, "--epochs", 3)
    assert last_checkpoint(run)["input"] == before


def test_rare_classes_weigh_more_in_the_loss(run):
    run, _ = run
    state = last_checkpoint(run)
    assert state["classes"] == ["NG", "OK"]
    from parse_config import ConfigParser
    from trainer import class_weights

    config = ConfigParser(state["config"])
    weight = config.init_obj("loss", **class_weights(config.init_obj("data_loader"))).keywords["weight"]
    torch.testing.assert_close(weight, torch.tensor([42 / (2 * 12), 42 / (2 * 30)]))


def test_the_data_are_checked_before_training(run, pictures, train, capsys):
    _, folder = run
    (folder / "train" / "NG" / "broken.png").write_bytes(b"")
    capsys.readouterr()
    train(pictures(folder), "--check")
    out = capsys.readouterr().out
    assert "train: 42 pictures (NG 12, OK 30)" in out
    assert "broken.png: is empty" in out
    assert "check passed" in out
    train(pictures(folder, on_bad_file="stop"), code=2)
