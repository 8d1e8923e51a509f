"""Folders of classes renamed, added, removed, swapped: right by name, or refused in a sentence."""

import csv
import json
import shutil
import unicodedata
from pathlib import Path

import pytest

import export as export_script
import prune as prune_script
import test as test_script
import train as train_script
from tests.conftest import runs, save_images
from utils import checkpoint

CLASSES = {"Grün": 16, "NG": 16, "OK": 16}  # of different brightness
CHANGES = {
    "as they were": {},
    "swapped": {"NG": "OK", "OK": "NG"},
    "added": {"+": "AA"},
    "removed": {"NG": None},
    "renamed to sort last": {"NG": "scratch"},
    "other case": {"OK": "ok"},
    "other unicode form": {"Grün": unicodedata.normalize("NFD", "Grün")},
}
SUBSETS = ("train", "val", "test")
# a subset without samples of one class is fine where the network is not trained on it
RIGHT = {"as they were", "swapped", "other unicode form"}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run on images of three classes, with its .onnx file."""
    folder = tmp_path_factory.mktemp("original")
    for subset in SUBSETS:
        save_images(folder / "parts" / subset, CLASSES, size=(16, 16))
    config = {
        "name": "Parts",
        "arch": {"type": "LeNet", "args": {"image_size": 16}},
        "data_loader": {
            "type": "ImageFolderDataLoader",
            "args": {"data_dir": str(folder / "parts"), "image_size": 16, "channels": 1,
                     "batch_size": 16, "num_workers": 0},
        },
        "optimizer": {"type": "Adam", "args": {"lr": 0.005}},
        "loss": "cross_entropy",
        "metrics": ["accuracy"],
        "trainer": {"epochs": 24, "save_dir": str(folder / "saved"), "monitor": "max val_accuracy",
                    "tensorboard": False, "verbosity": 1},
        "pruner": {"type": "MagnitudePruner", "args": {"channel_sparsity": 0.5, "round_to": 1}},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    assert train_script.main(["-c", str(folder / "config.json")]) == 0
    [run] = (folder / "saved" / "models" / "Parts").iterdir()
    assert export_script.main(["-r", str(run)]) == 0
    return folder


@pytest.fixture
def project(original, tmp_path):
    """A function that copies the run and the images, and changes the folders of a subset."""

    def copy(subset, change):
        shutil.copytree(original, tmp_path, dirs_exist_ok=True)
        place, moved = tmp_path / "parts" / subset, {}
        for old, new in CHANGES[change].items():
            if old == "+":
                shutil.copytree(place / "NG", place / new)
            elif new is None:
                shutil.rmtree(place / old)
            else:
                moved[new] = (place / old).rename(place / f"{old} moved")
        for new, path in moved.items():
            path.rename(place / new)
        [run] = (tmp_path / "saved" / "models" / "Parts").iterdir()
        return run, ["-d", "cpu", "-s", f"data_loader.args.data_dir={tmp_path / 'parts'}",
                     f"trainer.save_dir={tmp_path / 'saved'}"]  # fmt: skip

    return copy


@pytest.mark.parametrize(
    "names",
    [("train", "test"), pytest.param(("new run", "test val", "test onnx", "prune", "export"),
                                     marks=pytest.mark.slow)],
    ids=["train and test", "others"],
)  # fmt: skip
@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("change", CHANGES)
def test_scripts_are_right_by_name_or_refuse(project, capsys, tmp_path, subset, change, names):
    run, arguments = project(subset, change)
    config = str(tmp_path / "config.json")
    used = {  # which subsets each of them looks at
        "train": (train_script, ["-r", run, "--check"], {"train", "val", "test"}),
        "new run": (train_script, ["-r", run, "-c", config, "--check"], {"train", "val", "test"}),
        "test": (test_script, ["-r", run, "--check"], {"test"}),
        "test val": (test_script, ["-r", run, "--split", "val", "--check"], {"val"}),
        "test onnx": (test_script, ["-r", run / "model.onnx", "--check"], {"test"}),
        "prune": (prune_script, ["-r", run, "-c", config, "--check"], {"train", "val", "test"}),
        "export": (export_script, ["-r", run, "--check"], {"val"}),
    }
    allowed = RIGHT | ({"removed"} if subset != "train" else set())
    for name in names:
        script, words, subsets = used[name]
        code = script.main([*map(str, words), *arguments])
        error = capsys.readouterr().err
        # a new run has the classes of the new data, wherever these agree
        new_classes = name == "new run" and subset == "train" and change in ("removed", "added")
        if change in allowed or subset not in subsets:
            assert code == 0, (name, error)
        elif not new_classes:
            assert code == 2, name
            assert str(Path("parts") / subset) in error, (name, error)
            assert "Traceback" not in error


@pytest.mark.parametrize("file", ["model_best.pth", "model.onnx"])
@pytest.mark.parametrize("change", [*sorted(RIGHT), "removed"])
def test_labels_of_a_test_are_the_names_of_the_folders(project, file, change):
    run, arguments = project("test", change)
    assert test_script.main(["-r", str(run / file), *arguments]) == 0
    folder = run / "test" if file.endswith("pth") else run / "test" / file
    with open(folder / "predictions.csv", newline="", encoding="utf-8-sig") as table:
        rows = list(csv.DictReader(table))
    right = 0
    for row in rows:
        true = unicodedata.normalize("NFC", Path(row["sample"]).parent.name)
        assert row["true"] == true
        probability = {name: float(row[f"p({name})"]) for name in CLASSES}
        assert row["predicted"] == max(probability, key=probability.get)
        right += row["predicted"] == true
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["accuracy"] == pytest.approx(right / len(rows))
    assert (right / len(rows) > 0.9) == (change != "swapped")


def test_old_checkpoint_that_names_no_classes_says_what_is_not_compared(project, capsys):
    run, arguments = project("test", "as they were")
    state = checkpoint.load(run / "model_best.pth")
    state["config"]["arch"]["args"]["num_classes"] = 3
    checkpoint.save(state | {"classes": None}, run / "model_best.pth")
    assert test_script.main(["-r", str(run), *arguments]) == 0
    output = capsys.readouterr().out
    assert "does not name its classes; they are taken to be Grün, NG, OK" in output


def test_new_run_takes_the_rows_of_the_head_by_name(project, tmp_path):
    run, arguments = project("test", "as they were")
    order = ["OK", "Grün", "NG"]
    changes = [f"data_loader.args.classes={json.dumps(order)}", "optimizer.args.lr=1e-12"]
    config = ["-c", str(tmp_path / "config.json"), "--epochs", "1"]
    assert train_script.main(["-r", str(run), *config, *arguments, *changes]) == 0
    old, new = (checkpoint.load(path / "model_best.pth") for path in runs(tmp_path))
    assert (old["classes"], new["classes"]) == (["Grün", "NG", "OK"], order)
    for key in ("fc2.weight", "fc2.bias"):
        expected = old["state_dict"][key][[2, 0, 1]]
        assert new["state_dict"][key].numpy() == pytest.approx(expected.numpy(), abs=1e-6)
    assert new["monitor_best"] > 0.9


def test_test_and_export_name_what_they_leave_out(project, tmp_path, capsys):
    run, arguments = project("test", "as they were")
    for subset in ("val", "test"):
        for number in range(3):
            (tmp_path / "parts" / subset / "NG" / f"{number}.png").write_bytes(b"no image")
    assert test_script.main(["-r", str(run), *arguments]) == 0
    output = capsys.readouterr().out
    assert "3 samples of test are left out:" in output
    assert "parts/test/NG/1.png: is not an image" in output
    assert export_script.main(["-r", str(run), "--check", *arguments]) == 0
    assert "3 samples of val are left out:" in capsys.readouterr().out


def test_target_of_an_inspection_is_checked_before_a_test(project, capsys):
    run, arguments = project("test", "as they were")
    for check in (["--check"], []):
        assert test_script.main(["-r", str(run), *check, *arguments, "inspection.target=ng"]) == 2
        assert '"ng" is not one of the classes Grün, NG, OK' in capsys.readouterr().err


def test_resumed_run_says_that_its_data_has_changed(project, capsys):
    run, arguments = project("train", "as they were")
    words = ["-r", str(run), "--epochs", "25", *arguments]
    assert train_script.main(words) == 0
    assert "have changed" not in capsys.readouterr().out
    parts = Path(arguments[3].partition("=")[2]) / "train"
    for old, new in (("NG", "x"), ("OK", "NG"), ("x", "OK")):  # the labels of two classes
        (parts / old).rename(parts / new)
    assert train_script.main([*words[:2], "--epochs", "26", *arguments]) == 0
    assert "files, pixels or labels have changed" in capsys.readouterr().out
