"""test.py on .onnx files: the same results as the checkpoint's, and clear errors."""

import csv
import json
import os
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
from PIL import Image

import export as export_script
import parse_config
import test as script
import train as train_script
from data_loader.data_loaders import DigitsDataLoader
from exporter import onnx_file
from exporter.evaluator import Evaluator
from tester.trained import build_engine
from tests.conftest import ROOT
from utils import checkpoint
from utils.errors import CheckpointError, UserError

RESULTS = ("loss", "accuracy", "top_k_acc", "n", "per_class")
OPSET = "exporter.args.opset=17"


@pytest.fixture
def image_files(tmp_path, data_dir):
    """A folder of forty digits as files, some of another size or colour."""
    samples = DigitsDataLoader(str(data_dir)).for_subset("test").samples
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(40):
        image = Image.fromarray(samples.images[number, 0].numpy())
        if number % 4 == 1:
            image = image.resize((61, 90), Image.Resampling.BICUBIC)
        if number % 4 == 2:
            image = image.convert("RGB")
        image.save(folder / f"{number:02}.png")
    return folder


@pytest.fixture
def foreign(exported):
    """The same network as from another program: takes normalized float32, has no metadata."""
    file = exported / "foreign.onnx"
    assert export(exported, "-o", file, "-s", OPSET) == 0
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save(model, file)
    return file


@pytest.fixture
def config_file(digits, tmp_path):
    """The digits' configuration as a file."""
    file = tmp_path / "digits.json"
    file.write_text(json.dumps(digits()))
    return file


def table(file):
    with open(file, encoding="utf-8-sig", newline="") as text:
        return list(csv.DictReader(text))


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def run(path, *arguments):
    """Call test.py; return its exit code."""
    return script.main(["-r", str(path), *map(str, arguments)])


def export(path, *arguments):
    """Call export.py; return its exit code."""
    return export_script.main(["-r", str(path), *map(str, arguments)])


def error_of(capsys, *arguments, script=script):
    """The message of a script that refuses its arguments."""
    capsys.readouterr()
    assert script.main(list(map(str, arguments))) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_exported_file_is_tested_like_its_checkpoint(exported, capsys):
    assert run(exported) == 0
    before = contents(exported / "test")
    assert run(exported / "model.onnx", "--threads", 2) == 0
    folder = exported / "test" / "model.onnx"
    one, two = read(exported / "test" / "result.json"), read(folder / "result.json")
    assert two["checkpoint"] == "model.onnx"
    for key in RESULTS:
        same = isinstance(one[key], float)
        assert two[key] == (pytest.approx(one[key], rel=1e-5) if same else one[key])
    tables = table(exported / "test" / "predictions.csv"), table(folder / "predictions.csv")
    for first, second in zip(*tables, strict=True):
        assert (first["true"], first["predicted"]) == (second["true"], second["predicted"])
        assert float(second["p(3)"]) == pytest.approx(float(first["p(3)"]), abs=1e-5)
    assert "Digits" in (folder / "report.html").read_text(encoding="utf-8")
    assert two["speed"]["threads"] == 2
    assert 0 < two["speed"]["p50"] <= two["speed"]["p95"]
    assert two["speed"]["batch_size"] == 100
    assert "2 threads: one sample" in capsys.readouterr().out
    assert contents(exported / "test") == before  # the checkpoint's results stay


def test_one_session_serves_the_whole_test(exported, monkeypatch):
    sessions, session = [], onnx_file.session
    monkeypatch.setattr(onnx_file, "session", lambda *a: sessions.append(a) or session(*a))
    assert run(exported / "model.onnx") == 0
    assert len(sessions) == 1


def test_images_are_predicted_as_by_the_checkpoint(exported, image_files, monkeypatch):
    monkeypatch.setattr(
        DigitsDataLoader, "build_dataset", lambda *arguments: pytest.fail("no data set is needed")
    )
    assert run(exported, "--images", image_files) == 0
    assert run(exported / "model.onnx", "--images", image_files) == 0
    one = table(exported / "test" / "images" / "predictions.csv")
    two = table(exported / "test" / "model.onnx" / "images" / "predictions.csv")
    assert len(one) == 40
    assert [row["predicted"] for row in one] == [row["predicted"] for row in two]
    probabilities = [float(row["p(7)"]) for row in one]
    assert [float(row["p(7)"]) for row in two] == pytest.approx(probabilities, abs=1e-5)


@pytest.mark.parametrize(
    ("preprocess", "inspection"),
    [
        (True, None),
        (False, None),
        (False, {"threshold": 0.02}),
        (True, {"threshold": 0.02, "sure_threshold": 0.9}),
    ],
)
def test_documented_code_decides_without_torch(exported, image_files, preprocess, inspection):
    page = ROOT / "docs" / "export.md"
    if not page.exists():
        pytest.skip("this project has no docs/export.md")
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    [code] = [block for block in blocks if not block.startswith("# ")]
    if inspection:
        state = checkpoint.load(exported / "model_best.pth")
        inspection |= {"target": "3", "max_escape": 0.0}
        checkpoint.amend(exported / "model_best.pth", state, inspection=inspection)
    file = exported / "own.onnx"
    settings = [f"exporter.args.preprocess={json.dumps(preprocess)}"]
    settings += [] if preprocess else [OPSET]
    assert export(exported, "-o", file, "-s", *settings) == 0
    assert run(exported, "--images", image_files) == 0
    modules = ["torch", "torchvision", "utils", "data_loader", "onnx"]
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({modules}))\n"
    arguments, processes = [str(file), *map(str, sorted(image_files.iterdir()))], []
    for text in (blocked + code, blocked + "import torch"):
        command = [sys.executable, "-I", "-c", text, *arguments]
        options = {"capture_output": True, "text": True, "check": False}
        processes.append(subprocess.run(command, cwd=exported, env=os.environ, **options))
    assert processes[1].returncode != 0  # torch is blocked indeed
    assert processes[0].returncode == 0, processes[0].stderr
    answers = [line.rsplit(" ", 1) for line in processes[0].stdout.splitlines()]
    rows = table(exported / "test" / "images" / "predictions.csv")
    wanted = [[row["picture"], row.get("decision", row["predicted"])] for row in rows]
    assert answers == wanted
    if inspection:
        likeliest = [max(range(10), key=lambda k: float(row[f"p({k})"])) for row in rows]
        assert [str(number) for number in likeliest] != [decision for _, decision in wanted]


@pytest.mark.parametrize("share", [0, 0.2, 0.6, 0.99])
def test_truncated_file_is_reported(exported, capsys, share):
    file = exported / "model.onnx"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    assert "model.onnx cannot be read as an ONNX file" in error_of(capsys, "-r", file)
    error = error_of(capsys, "--compare", file, exported, script=export_script)
    assert "model.onnx cannot be read" in error


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config", "[]"),
        ("input.shape", '{"mean": [1]}'),
        ("classes", '"abc"'),
        ("softmax", "not JSON"),
    ],
)
def test_damaged_metadata_is_reported(exported, capsys, key, value):
    model = onnx.load(exported / "model.onnx")
    next(
        entry for entry in model.metadata_props if entry.key == key.partition(".")[0]
    ).value = value
    onnx_file.save(model, exported / "model.onnx", onnx_file.entries(model), {})
    error = error_of(capsys, "-r", exported / "model.onnx")
    assert f"its metadata is damaged: {key}: " in error


class ThreeDigitsLoader(DigitsDataLoader):
    """Only the first three digits."""

    def build_dataset(self, subset, augment):
        data = super().build_dataset(subset, augment)
        chosen = data.targets < 3
        data.images, data.targets = data.images[chosen], data.targets[chosen]
        data.classes = data.classes[:3]
        return data


def test_wrong_number_of_classes_is_reported(exported, foreign, digits, tmp_path, capsys):
    file = tmp_path / "three.json"
    loader = "tests.exporter.test_onnx.ThreeDigitsLoader"
    file.write_text(json.dumps(digits({"data_loader.type": loader})))
    error = error_of(capsys, "-r", exported / "model.onnx", "-c", file)
    assert "the data's classes are 0, 1, 2, those of" in error
    assert "0, 1, 2, 3, 4, ... 9: 3, 4, 5, 6, 7, ... 9 missing" in error
    error = error_of(capsys, "-r", foreign, "-c", file)
    assert "foreign.onnx has 10 classes, the data has 3" in error


def test_file_from_another_program_needs_a_config(
    exported, foreign, config_file, capsys, image_files
):
    assert "carries no configuration: pass -c FILE" in error_of(capsys, "-r", foreign)
    assert run(foreign, "-c", config_file) == 0
    assert run(exported) == 0
    one, two = (read(exported / "test" / name / "result.json") for name in ("", "foreign.onnx"))
    assert two["accuracy"] == one["accuracy"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    files = [str(foreign), str(exported / "model.onnx")]
    assert export_script.main(["--compare", *files, "-c", str(config_file)]) == 0
    rows = table(exported / "compare" / "compare.csv")
    assert [row["macs"] for row in rows] == ["", "480500"]
    assert rows[0]["accuracy"] == rows[1]["accuracy"]
    assert run(exported, "--images", image_files) == 0
    assert run(foreign, "-c", config_file, "--images", image_files) == 0
    one, two = (
        table(exported / "test" / name / "images" / "predictions.csv")
        for name in ("", "foreign.onnx")
    )
    assert [row["predicted"] for row in one] == [row["predicted"] for row in two]


def test_file_from_another_program_with_another_input(exported, config_file, capsys):
    model = onnx.load(exported / "model.onnx")
    del model.metadata_props[:]
    file = exported / "bytes.onnx"
    onnx.save(model, file)
    error = error_of(capsys, "-r", file, "-c", config_file)
    assert "cannot take a batch of 100x1x28x28, float32" in error


def test_missing_provider_is_reported(exported, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UserError, match=r"CUDAExecutionProvider is missing.*pass -d cpu"):
        onnx_file.runner(exported / "model.onnx", 1, "cuda:0")


@pytest.mark.parametrize("wanted", [None, "0"])
def test_file_runs_on_the_cpu_unless_a_gpu_is_asked_for(
    exported, digits, capsys, monkeypatch, wanted
):
    """On a machine with a GPU, and the usual onnxruntime, which knows none."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.set_device", lambda number: None)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla K80")
    parser = parse_config.ConfigParser(digits())
    config = parser.from_checkpoint(exported / "model.onnx")
    engine, proof = build_engine(config, wanted), Evaluator(config, wanted).engine
    assert [one.device.type for one in (engine, proof)] == ["cuda" if wanted else "cpu"] * 2
    on_gpu = build_engine(parser.from_checkpoint(exported), None)
    assert on_gpu.device.type == "cuda"
    if wanted is None:
        assert run(exported / "model.onnx") == 0
        assert "device: CPU" in capsys.readouterr().out


def test_what_files_do_not_support_is_reported(exported, capsys, image_files, config_file):
    file = exported / "model.onnx"
    assert "can only be tested" in error_of(capsys, "-r", file, script=train_script)
    capsys.readouterr()
    assert run(file, "--images", image_files, "--heatmap") == 2
    output = capsys.readouterr()
    assert "model.onnx has no layers to look at" in output.err
    assert not output.out  # found before anything is predicted
    error = error_of(capsys, "-r", file, "-c", config_file, script=train_script)
    assert "can only be tested" in error
    assert "--threads -1: should be" in error_of(capsys, "-r", file, "--threads", "-1")
    with pytest.raises(CheckpointError, match="there is no file"):
        onnx_file.load(exported / "none.onnx")


def test_threshold_is_kept_in_the_file(exported, image_files):
    file = exported / "model.onnx"
    modified, before = file.stat().st_mtime, onnx_file.load(file)
    assert run(file, "-s", 'inspection.target="8"') == 0
    chosen = onnx_file.load(file)["inspection"]
    assert chosen["target"] == "8"
    assert file.stat().st_mtime == modified
    assert onnx_file.load(file) == before | {"inspection": chosen}
    result = read(exported / "test" / "model.onnx" / "result.json")
    assert result["inspection"]["threshold"] == chosen["threshold"]
    assert run(exported, "-s", 'inspection.target="8"') == 0
    trained = checkpoint.load(exported / checkpoint.BEST)["inspection"]
    assert trained["threshold"] == pytest.approx(chosen["threshold"], rel=1e-4)
    assert run(file, "--images", image_files) == 0
    assert "decision" in table(exported / "test" / "model.onnx" / "images" / "predictions.csv")[0]
    assert export(exported, "-o", exported / "new.onnx", "-s", OPSET) == 0
    assert onnx_file.load(exported / "new.onnx")["inspection"]["target"] == "8"


def test_threshold_is_kept_in_a_file_from_another_program(exported, foreign, config_file):
    model = onnx.load(foreign)
    onnx.helper.set_model_props(model, {"names": "{0: 'zero'}"})  # not JSON
    onnx.save(model, foreign)
    assert run(foreign, "-c", config_file, "-s", 'inspection.target="8"') == 0
    state = onnx_file.load(foreign)
    result = read(exported / "test" / "foreign.onnx" / "result.json")
    assert state["inspection"]["threshold"] == result["inspection"]["threshold"]
    assert state["config"] is state["classes"] is state["input"] is None
    entries = onnx_file.entries(onnx.load(foreign))
    assert entries.keys() == {"names", "inspection", "digest"}
    assert entries["names"] == "{0: 'zero'}"


def test_check_runs_one_batch(exported, capsys):
    assert run(exported / "model.onnx", "--check") == 0
    assert "check passed" in capsys.readouterr().out
    assert not (exported / "test").exists()


@pytest.mark.slow
def test_steel_defects_raw_images_give_the_checkpoints_classes(kata_data, train, digits):
    """With Pillow and onnxruntime alone, over all validation images."""
    import onnxruntime

    folder = kata_data / "neu_surface_defects"
    arguments = {"data_dir": str(folder), "image_size": 64, "channels": 1, "batch_size": 64}
    arguments["normalize"] = "data"
    config = digits({"arch": {"type": "resnet18"}, "metrics": ["accuracy"], "trainer.epochs": 2})
    loader = {"type": "ImageFolderDataLoader", "args": arguments}
    trained = train(config | {"data_loader": loader})
    assert export(trained, "-s", "exporter.args.preprocess=true") == 0
    assert run(trained, "--images", folder / "val") == 0
    session = onnxruntime.InferenceSession(trained / "model.onnx")
    rows = table(trained / "test" / "images" / "predictions.csv")
    classes = sorted(p.name for p in (folder / "train").iterdir())
    assert len(rows) == 360
    for row in rows:
        image = Image.open(row["picture"]).convert("L")
        pixels = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR))
        [output] = session.run(None, {"input": pixels[None, :, :, None]})
        assert classes[output[0].argmax()] == row["predicted"]


def test_exported_files_name_no_folder_of_this_machine(exported):
    for name in ("model.onnx", "model.int8.onnx"):
        assert str(ROOT).encode() not in (exported / name).read_bytes()
