"""Whole runs on folders of images: the data check, class weights and normalisation in training."""

import pytest
import torch

from parse_config import ConfigParser
from tests.conftest import last_checkpoint, save_images
from trainer.build import class_weights


@pytest.fixture
def run(image_config, train, tmp_path):
    """A run on images normalised by their own mean and std, and its folder of images."""
    folder = tmp_path / "parts"
    save_images(folder / "train", {"NG": 12, "OK": 30})
    save_images(folder / "val", {"NG": 5, "OK": 5})
    return train(image_config(folder, normalize="data", balance="loss")), folder


def test_resumed_run_keeps_its_normalisation(run, resume):
    run, folder = run
    before = last_checkpoint(run)["input"]
    save_images(folder / "train", {"NG": 20, "OK": 31})
    resume(run, "--epochs", 3)
    assert last_checkpoint(run)["input"] == before


def test_resumed_run_keeps_its_classes(run, resume, capsys):
    """Another folder among the training images, which would renumber the others, is refused."""
    run, folder = run
    save_images(folder / "train", {"A": 3})
    resume(run, "--epochs", 3, code=2)
    error = capsys.readouterr().err
    assert "contains A, which data_loader.args.classes" in error
    assert "Traceback" not in error
    (folder / "train" / "A").rename(folder / "train" / "OK" / "more")
    resume(run, "--epochs", 3)
    state = last_checkpoint(run)
    assert (state["epoch"], state["classes"]) == (3, ["NG", "OK"])
    assert state["config"]["data_loader"]["args"]["classes"] == ["NG", "OK"]


def test_new_run_from_a_checkpoint_has_the_classes_of_its_own_data(run, image_config, train):
    run, folder = run
    save_images(folder / "train", {"A": 3})
    new = train(image_config(folder) | {"arch": "LeNet"}, "-r", run, "--epochs", 1)
    assert last_checkpoint(new)["classes"] == ["A", "NG", "OK"]


def test_rare_classes_have_larger_weights_in_the_loss(run):
    run, _ = run
    state = last_checkpoint(run)
    assert state["classes"] == ["NG", "OK"]
    config = ConfigParser(state["config"])
    loss = config.init_obj("loss", **class_weights(config.init_obj("data_loader")))
    expected = torch.tensor([42 / (2 * 12), 42 / (2 * 30)])
    torch.testing.assert_close(loss.keywords["weight"], expected)


def test_data_is_checked_before_training(run, image_config, train, capsys):
    _, folder = run
    (folder / "train" / "NG" / "broken.png").write_bytes(b"")
    capsys.readouterr()
    train(image_config(folder), "--check")
    out = capsys.readouterr().out
    assert "train: 42 images (NG 12, OK 30)" in out
    assert "broken.png: is empty" in out
    assert "check passed" in out
    train(image_config(folder, on_bad_file="stop"), code=2)
