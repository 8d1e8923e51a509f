"""A configuration for a folder of images."""

import json

import numpy as np
import pytest
from PIL import Image

import train as script
from parse_config import ConfigParser
from tests.conftest import runs, save_images
from trainer import proposal
from utils.config import config_file
from utils.config.sections import PROPOSED
from utils.errors import UserError


@pytest.fixture
def propose(tmp_path, monkeypatch):
    """A function that gives the configuration proposed for a folder."""
    monkeypatch.setattr(proposal, "ROOT", tmp_path)
    monkeypatch.setattr(proposal, "images_per_second", lambda *arguments: 50.0)

    def run(folder, target=None, weights=None):
        path = proposal.propose(folder, target, weights)
        config, _ = config_file.read_layers(path)
        config["trainer"]["save_dir"] = str(tmp_path / "saved")
        path.write_text(json.dumps(config), "utf-8")
        return ConfigParser(config).config

    return run


def test_classes_in_a_folder_are_split_and_the_rare_one_is_drawn_more_often(tmp_path, propose):
    save_images(tmp_path / "部品", {"NG": 12, "OK": 60}, size=(100, 120))
    config = propose(tmp_path / "部品", target="NG")
    assert config["name"] == "部品"
    arguments = config["data_loader"]["args"]
    assert arguments["split"] == [0.6, 0.2, 0.2]
    assert arguments["stratify"]
    assert arguments["balance"] == "sampler"
    assert arguments["channels"] == 3
    wanted = {"target": "NG", "max_escape": 0.0, "max_overkill": 0.02}
    assert config["inspection"] == wanted
    assert config["trainer"]["monitor"] == "max val_balanced_accuracy"
    assert "RandomResizedCrop" not in json.dumps(arguments)  # a crop may lose the defect
    assert config.items() >= PROPOSED.items()


def test_own_parts_are_used_and_grey_images_stay_grey(tmp_path, propose):
    for part, count in {"Training": 30, "valid": 10, "test": 5}.items():
        for name in ("a", "b"):
            folder = tmp_path / "set" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.full((28, 30, 3), 40 + number, np.uint8)  # grey, stored as colour
                Image.fromarray(pixels).save(folder / f"{number}.png")
    config = propose(tmp_path / "set")
    arguments = config["data_loader"]["args"]
    assert arguments["channels"] == 1
    assert not {"split", "balance", "validation_split"} & set(arguments)
    assert config["arch"] == {"type": "CifarResNet", "args": {"depth": 20}}
    assert arguments["image_size"] == 28
    assert "inspection" not in config


def test_a_table_is_split_unless_it_says_the_subsets(tmp_path, propose):
    save_images(tmp_path / "parts", {"NG": 6, "OK": 12})
    names = [
        f"{name}/{n}.png,{name}" for name, count in (("NG", 6), ("OK", 12)) for n in range(count)
    ]
    table = tmp_path / "parts" / "labels.csv"
    table.write_text("\n".join(["path,label", *names]), "utf-8")
    arguments = propose(table, target="NG")["data_loader"]["args"]
    assert arguments["data_dir"] == str(tmp_path / "parts")
    assert arguments["labels"] == "labels.csv"
    assert arguments["split"] == [0.6, 0.2, 0.2]
    (tmp_path / "configs" / "parts.json").unlink()
    subsets = ["subset", *["train", "val"] * 9]
    rows = zip(["path,label", *names], subsets, strict=True)
    table.write_text("\n".join(",".join(row) for row in rows), "utf-8")
    assert "split" not in propose(table)["data_loader"]["args"]


def test_several_labels_get_the_task_for_them(tmp_path, propose, capsys, train):
    save_images(tmp_path / "parts", {"all": 20}, size=(32, 32))
    labels = ["crack", "dent", "crack|dent", ""] * 5
    rows = [f"all/{number}.png,{label}" for number, label in enumerate(labels)]
    table = tmp_path / "parts" / "labels.csv"
    table.write_text("\n".join(["path,label", *rows]), "utf-8")
    config = propose(table)
    assert config["task"] == "MultiLabelTask"
    assert train(config, "--epochs", 1)
    assert script.main(["--data", str(table), "--target", "crack"]) == 2
    assert "no --target" in capsys.readouterr().err
    (tmp_path / "configs" / "parts.json").unlink()
    assert script.main(["--data", str(table), "--target", "crack"]) == 2
    assert "images of one class each" in capsys.readouterr().err


def test_a_configuration_for_other_images_or_another_target_is_not_used(tmp_path, propose, capsys):
    for place in ("one", "two"):
        save_images(tmp_path / place / "parts", {"NG": 5, "OK": 5})
    propose(tmp_path / "one" / "parts", target="NG")
    for arguments, said in {
        (str(tmp_path / "two" / "parts"),): f"for the images in {tmp_path / 'one' / 'parts'}",
        (str(tmp_path / "one" / "parts"), "--target", "OK"): "for --target NG",
        (str(tmp_path / "one" / "parts"), "--weights", "DEFAULT"): "for no --weights",
    }.items():
        assert script.main(["--data", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert "train by it with -c configs/parts.json" in error


def test_more_images_get_fewer_epochs_and_a_faster_machine_more(tmp_path, propose, monkeypatch):
    found = []
    for count, speed in (30, 50.0), (300, 50.0), (300, 25.0), (300, 1.0):
        monkeypatch.setattr(proposal, "images_per_second", lambda *arguments, s=speed: s)
        folder = tmp_path / f"set{count}-{speed}"
        save_images(folder, {"a": count, "b": count}, size=(50, 50))
        config = propose(folder)
        found.append((config["arch"]["type"], config["trainer"]["epochs"]))
    # 0.6 of the images are for training; five minutes
    assert found == [("resnet18", 100), ("resnet18", 42), ("resnet18", 21), ("resnet18", 10)]


def test_larger_sets_get_a_smaller_network():
    plans = [
        proposal._network(proposal.Survey({"a": 1, "b": 1}, [], side, True), trained)
        for side, trained in ((200, 400), (200, 600), (28, 400))
    ]
    names = [(network["type"], side) for network, side in plans]
    assert names == [("resnet18", 96), ("mobilenet_v3_small", 96), ("CifarResNet", 28)]


def test_speed_of_the_machine_is_measured(monkeypatch):
    monkeypatch.setattr(proposal, "MEASURED", 0.2)
    small = {"type": "CifarResNet", "args": {"depth": 8}}
    speeds = [proposal.images_per_second(small, side, 8) for side in (16, 64)]
    assert speeds[0] > 3 * speeds[1] > 0


@pytest.mark.parametrize(
    "builder", ["resnet18", pytest.param("mobilenet_v2", marks=pytest.mark.slow)]
)
def test_weights_tell_their_network(tmp_path, builder):
    import torch
    from torchvision import models

    state = models.get_model(builder, num_classes=7).state_dict()
    backbone = {name: value for name, value in state.items() if not name.startswith("classifier")}
    torch.save({"state_dict": backbone}, tmp_path / "w.pth")
    assert proposal.builder_of(str(tmp_path / "w.pth")) == builder
    torch.save({"a.weight": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(script.UserError, match="belongs to none of resnet18"):
        proposal.builder_of(str(tmp_path / "w.pth"))


def test_command_writes_the_file_once_and_trains(tmp_path, propose, capsys, monkeypatch):
    save_images(tmp_path / "parts", {"NG": 10, "OK": 20}, size=(32, 32))
    command = ["--data", str(tmp_path / "parts"), "--epochs", "1"]
    command += ["-s", f"trainer.save_dir={tmp_path / 'saved'}", "trainer.tensorboard=false"]
    assert script.main(command) == 0
    file = tmp_path / "configs" / "parts.json"
    text = file.read_text("utf-8")
    printed = capsys.readouterr().out
    assert text in printed
    assert "// for 30 images, 18 of them for training" in text
    assert "validation of epoch 1" in printed
    assert len(runs(tmp_path)) == 1
    file.write_text(text.replace("Nesterov", "nesterov") + "// mine\n", "utf-8")
    assert script.main(command) == 0
    assert file.read_text("utf-8").endswith("// mine\n")
    assert "parts.json is there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "there is no folder"),
        (["--data", "one"], "a folder of images for each class"),
        (["--data", "two", "--target", "ng"], '"ng" is not one of the classes NG, OK'),
        (["--data", "two", "-c", "x.json"], "leave out -c and -r"),
        (["--target", "NG", "-c", "x.json"], "--target and --weights belong to --data"),
        (["--data", "two", "--weights", "lost.pth"], "there is no file lost.pth"),
    ],
)
def test_mistakes_are_said(tmp_path, propose, capsys, monkeypatch, arguments, message):
    save_images(tmp_path / "one", {"NG": 2})
    save_images(tmp_path / "two", {"NG": 2, "OK": 2})
    monkeypatch.chdir(tmp_path)
    assert script.main(arguments) == 2
    assert message in capsys.readouterr().err


def refused(propose, *arguments):
    with pytest.raises(UserError) as error:
        propose(*arguments)
    return str(error.value)


def test_what_is_wrong_with_a_folder_is_said_by_the_flags_name(tmp_path, propose, capsys):
    missing = tmp_path / "missing"
    assert refused(propose, missing) == f"--data: there is no folder or table {missing}"
    save_images(tmp_path / "parts", {"NG": 6, "OK": 6})
    assert refused(propose, tmp_path / "parts", "ng").startswith('--target: "ng" is not one of')
    above = f"if its images are one class, pass the folder above: --data {tmp_path / 'parts'}"
    assert above in refused(propose, tmp_path / "parts" / "NG")
    for name in ("OK", "NG"):
        for part in ("train", "valid"):
            save_images(tmp_path / "swapped" / name, {part: 4})
    wanted = "should contain those of the classes: train/NG"
    assert wanted in refused(propose, tmp_path / "swapped")
    assert not capsys.readouterr().err
    save_images(tmp_path / "all" / "parts", {"NG": 6, "OK": 6})
    save_images(tmp_path / "all" / "steel", {"crazing": 6, "patches": 6})
    propose(tmp_path / "all")
    assert f"pass a folder that contains them, --data {tmp_path / 'all' / 'parts'}" in (
        capsys.readouterr().err
    )
    assert not list((tmp_path / "configs").glob("[!a]*"))  # of the refused ones
