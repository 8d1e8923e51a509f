"""test.py on .onnx files: the answers of the checkpoint they were made from, and plain words for files that will not do."""

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

import export
import test as script
import train as train_script
from data_loader.data_loaders import DigitsDataLoader
from tests.conftest import ROOT
from utils import checkpoint, onnx_file
from utils.errors import CheckpointError, UserError

RESULTS = ("loss", "accuracy", "top_k_acc", "n", "per_class")


@pytest.fixture
def pictures(tmp_path, data_dir):
    """Forty digits as files, some of another size or colour."""
    samples = DigitsDataLoader(str(data_dir)).of_subset("test").samples
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(40):
        picture = Image.fromarray(samples.pictures[number, 0].numpy())
        if number % 4 == 1:
            picture = picture.resize((61, 90), Image.Resampling.BICUBIC)
        if number % 4 == 2:
            picture = picture.convert("RGB")
        picture.save(folder / f"{number:02}.png")
    return folder


def table(file):
    with open(file, encoding="utf-8-sig", newline="") as text:
        return list(csv.DictReader(text))


def read(file):
    with open(file, encoding="utf-8") as text:
        return json.load(text)


def refused(capsys, *arguments, script=script):
    """What the script says to what it does not take."""
    capsys.readouterr()
    assert script.main(list(map(str, arguments))) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


@pytest.fixture
def plain(exported):
    """The same network as a file that takes normalised float32, without metadata: made elsewhere."""
    options = ["-o", str(exported / "foreign.onnx"), "-s", "exporter.args.opset=17"]
    assert export.main(["-r", str(exported), *options]) == 0
    model = onnx.load(exported / "foreign.onnx")
    del model.metadata_props[:]
    onnx.save(model, exported / "foreign.onnx")
    return exported / "foreign.onnx"


def test_a_file_is_tested_like_its_checkpoint(exported, capsys):
    assert script.main(["-r", str(exported)]) == 0
    before = {file.name: file.read_bytes() for file in (exported / "test").iterdir() if file.is_file()}
    assert script.main(["-r", str(exported / "model.onnx"), "--threads", "2"]) == 0
    found = exported / "test" / "model.onnx"
    one, two = read(exported / "test" / "result.json"), read(found / "result.json")
    assert two["checkpoint"] == "model.onnx"
    for key in RESULTS:
        assert two[key] == (pytest.approx(one[key], rel=1e-5) if isinstance(one[key], float) else one[key])
    for first, second in zip(table(exported / "test" / "predictions.csv"), table(found / "predictions.csv"), strict=True):
        assert (first["true"], first["predicted"]) == (second["true"], second["predicted"])
        assert float(second["p(3)"]) == pytest.approx(float(first["p(3)"]), abs=1e-5)
    assert "Digits" in (found / "report.html").read_text(encoding="utf-8")
    assert two["speed"]["threads"] == 2
    assert 0 < two["speed"]["p50"] <= two["speed"]["p95"]
    assert two["speed"]["batch_size"] == 100
    assert "2 threads: one sample" in capsys.readouterr().out
    # what was said of the checkpoint stays
    assert {file.name: file.read_bytes() for file in (exported / "test").iterdir() if file.is_file()} == before


def test_one_session_serves_the_whole_test(exported, monkeypatch):
    made = []
    monkeypatch.setattr(onnx_file, "session", lambda *a, of=onnx_file.session: made.append(a) or of(*a))
    assert script.main(["-r", str(exported / "model.onnx")]) == 0
    assert len(made) == 1


def test_pictures_are_answered_as_by_the_checkpoint(exported, pictures, monkeypatch):
    monkeypatch.setattr(DigitsDataLoader, "build_dataset", lambda *arguments: pytest.fail("no data set is needed"))
    assert script.main(["-r", str(exported), "--images", str(pictures)]) == 0
    assert script.main(["-r", str(exported / "model.onnx"), "--images", str(pictures)]) == 0
    one = table(exported / "test" / "images" / "predictions.csv")
    two = table(exported / "test" / "model.onnx" / "images" / "predictions.csv")
    assert len(one) == 40
    assert [row["predicted"] for row in one] == [row["predicted"] for row in two]
    assert [float(row["p(7)"]) for row in two] == pytest.approx([float(row["p(7)"]) for row in one], abs=1e-5)


@pytest.mark.parametrize("preprocess", [True, False])
def test_the_documented_code_needs_no_torch(exported, pictures, preprocess):
    page = ROOT / "docs" / "onnx.md"
    if not page.exists():
        pytest.skip("a project of one's own has no such page")
    [code] = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    file = exported / "model.onnx"
    if not preprocess:
        file = exported / "floats.onnx"
        assert export.main(["-r", str(exported), "-o", str(file), "-s", "exporter.args.opset=17"]) == 0
    assert script.main(["-r", str(exported), "--images", str(pictures)]) == 0
    blocked = "import sys\nsys.modules.update(dict.fromkeys(['torch', 'torchvision', 'utils', 'data_loader', 'onnx']))\n"
    answers = []
    for text in (blocked + code, blocked + "import torch"):
        command = [sys.executable, "-I", "-c", text, str(file), *map(str, sorted(pictures.iterdir()))]
        answers.append(subprocess.run(command, capture_output=True, text=True, check=False, cwd=exported, env=os.environ))
    assert answers[1].returncode != 0  # the block holds
    assert answers[0].returncode == 0, answers[0].stderr
    said = [line.rsplit(" ", 1) for line in answers[0].stdout.splitlines()]
    rows = table(exported / "test" / "images" / "predictions.csv")
    assert said == [[row["picture"], row["predicted"]] for row in rows]


@pytest.mark.parametrize("share", [0, 0.2, 0.6, 0.99])
def test_a_truncated_file(exported, capsys, share):
    file = exported / "model.onnx"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    assert "model.onnx cannot be read as an ONNX file" in refused(capsys, "-r", file)
    assert "model.onnx cannot be read" in refused(capsys, "--compare", file, exported, script=export)


@pytest.mark.parametrize(
    ("key", "value"), [("config", "[]"), ("input", '{"mean": [1]}'), ("classes", '"abc"'), ("softmax", "no JSON")]
)
def test_damaged_metadata(exported, capsys, key, value):
    model = onnx.load(exported / "model.onnx")
    next(entry for entry in model.metadata_props if entry.key == key).value = value
    onnx.save(model, exported / "model.onnx")
    assert "its metadata are damaged" in refused(capsys, "-r", exported / "model.onnx")


class FewDigits(DigitsDataLoader):
    """Only the first three digits."""

    def build_dataset(self, subset, augment):
        data = super().build_dataset(subset, augment)
        chosen = data.targets < 3
        data.pictures, data.targets, data.classes = data.pictures[chosen], data.targets[chosen], data.classes[:3]
        return data


def test_another_number_of_classes_than_the_data_have(exported, plain, digits, tmp_path, capsys):
    other = tmp_path / "few.json"
    other.write_text(json.dumps(digits({"data_loader.type": "tests.test_onnx.FewDigits"})))
    said = refused(capsys, "-r", exported / "model.onnx", "-c", other)
    assert "tells 10 classes apart" in said
    assert "the data have 3 (0, 1, 2)" in said
    assert "tells 10 classes apart, but the data have 3" in refused(capsys, "-r", plain, "-c", other)


def test_a_file_made_elsewhere(exported, plain, digits, tmp_path, capsys, pictures):
    assert "made elsewhere and carries no configuration: say -c FILE" in refused(capsys, "-r", plain)
    own = tmp_path / "own.json"
    own.write_text(json.dumps(digits()))
    assert script.main(["-r", str(plain), "-c", str(own)]) == 0
    assert script.main(["-r", str(exported)]) == 0
    one, two = (read(exported / "test" / place / "result.json") for place in ("", "foreign.onnx"))
    assert two["accuracy"] == one["accuracy"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert export.main(["--compare", str(plain), str(exported / "model.onnx"), "-c", str(own)]) == 0
    rows = table(exported / "compare" / "compare.csv")
    assert [row["macs"] for row in rows] == ["", "480500"]
    assert rows[0]["accuracy"] == rows[1]["accuracy"]
    for file, more in ((exported, []), (plain, ["-c", str(own)])):
        assert script.main(["-r", str(file), *more, "--images", str(pictures)]) == 0
    one, two = (table(exported / "test" / place / "images" / "predictions.csv") for place in ("", "foreign.onnx"))
    assert [row["predicted"] for row in one] == [row["predicted"] for row in two]


def test_a_file_made_elsewhere_that_takes_something_else(exported, digits, tmp_path, capsys):
    model = onnx.load(exported / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, exported / "bytes.onnx")
    own = tmp_path / "own.json"
    own.write_text(json.dumps(digits()))
    assert "cannot take a batch of 100x1x28x28, float32" in refused(capsys, "-r", exported / "bytes.onnx", "-c", own)


def test_where_the_provider_is_missing(exported, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UserError, match=r"CUDAExecutionProvider is missing.*say -d cpu"):
        onnx_file.runner(exported / "model.onnx", 1, "cuda:0")


def test_what_a_file_cannot_do_is_said(exported, capsys, pictures, digits, tmp_path):
    file = exported / "model.onnx"
    assert "is for testing only" in refused(capsys, "-r", file, script=train_script)
    capsys.readouterr()
    assert script.main(["-r", str(file), "--images", str(pictures), "--heatmap"]) == 2
    said = capsys.readouterr()
    assert "model.onnx has no layers to look at" in said.err
    assert not said.out  # nothing is predicted before that is found
    own = tmp_path / "own.json"
    own.write_text(json.dumps(digits()))
    assert "is for testing only" in refused(capsys, "-r", file, "-c", own, script=train_script)
    assert "--threads -1: should be" in refused(capsys, "-r", file, "--threads", "-1")
    with pytest.raises(CheckpointError, match="there is no file"):
        onnx_file.load(exported / "none.onnx")


def test_a_threshold_is_kept_in_the_file(exported, capsys, pictures):
    file = exported / "model.onnx"
    modified, before = file.stat().st_mtime, onnx_file.load(file)
    assert script.main(["-r", str(file), "-s", 'inspection.target="8"']) == 0
    chosen = onnx_file.load(file)["inspection"]
    assert chosen["target"] == "8"
    assert file.stat().st_mtime == modified
    assert onnx_file.load(file) == before | {"inspection": chosen}
    result = read(exported / "test" / "model.onnx" / "result.json")
    assert result["inspection"]["threshold"] == chosen["threshold"]
    assert script.main(["-r", str(exported), "-s", 'inspection.target="8"']) == 0
    assert checkpoint.load(exported / checkpoint.BEST)["inspection"]["threshold"] == pytest.approx(
        chosen["threshold"], rel=1e-4
    )
    assert script.main(["-r", str(file), "--images", str(pictures)]) == 0
    assert "decision" in table(exported / "test" / "model.onnx" / "images" / "predictions.csv")[0]
    assert export.main(["-r", str(exported), "-o", str(exported / "new.onnx"), "-s", "exporter.args.opset=17"]) == 0
    assert onnx_file.load(exported / "new.onnx")["inspection"]["target"] == "8"


def test_check_runs_one_batch(exported, capsys):
    assert script.main(["-r", str(exported / "model.onnx"), "--check"]) == 0
    assert "check passed" in capsys.readouterr().out
    assert not (exported / "test").exists()


@pytest.mark.slow
def test_steel_defects_raw_pictures_give_the_checkpoints_classes(kata_data, tmp_path, train, digits):
    """With Pillow and onnxruntime alone, over all validation pictures."""
    import onnxruntime

    folder = kata_data / "neu_surface_defects"
    arguments = {"data_dir": str(folder), "image_size": 64, "channels": 1, "batch_size": 64, "normalize": "data"}
    config = digits({"arch": {"type": "resnet18"}, "metrics": ["accuracy"], "trainer.epochs": 2})
    run = train(config | {"data_loader": {"type": "ImageFolderDataLoader", "args": arguments}})
    assert export.main(["-r", str(run), "-s", "exporter.args.preprocess=true"]) == 0
    assert script.main(["-r", str(run), "--images", str(folder / "val")]) == 0
    session, rows = onnxruntime.InferenceSession(run / "model.onnx"), table(run / "test" / "images" / "predictions.csv")
    classes = sorted(p.name for p in (folder / "train").iterdir())
    assert len(rows) == 360
    for row in rows:
        picture = Image.open(row["picture"]).convert("L").resize((64, 64), Image.Resampling.BILINEAR)
        [output] = session.run(None, {"input": np.asarray(picture)[None, :, :, None]})
        assert classes[output[0].argmax()] == row["predicted"]
