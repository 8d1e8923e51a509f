"""From the image file to the decision: an exported file that takes decoded images of any size."""

import copy
import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import export as export_script
import test as test_script
import train as train_script
from data_loader.transforms import CropRegion, Pipeline
from exporter import onnx_file, proof
from exporter.preprocessing import ImagePreparation, baked
from tests.conftest import DIGITS, runs
from trainer.proposal import configuration

IMAGE = "exporter.args.preprocess=image"
BAND = ("inspection.target=NG", "inspection.max_overkill=0.02")
SIZES = [(20, 31), (64, 48), (28, 28), (97, 40), (150, 260)]  # height, width


def save_parts(folder, count=30):
    """Images of many sizes; NG are darker than OK on average, but not always."""
    generator = np.random.default_rng(0)
    for subset in ("train", "val", "test"):
        for name, brightness in ("NG", 90), ("OK", 150):
            (folder / subset / name).mkdir(parents=True)
            for index in range(count):
                size = generator.integers(20, 90, 2)
                level = generator.normal(brightness, 25) + generator.normal(0, 20, (*size, 3))
                image = Image.fromarray(level.clip(0, 255).astype(np.uint8))
                image.save(folder / subset / name / f"{index}.png")


@pytest.fixture(scope="module", params=["grey", pytest.param("colour", marks=pytest.mark.slow)])
def trained(request, tmp_path_factory):
    """A run on such images, with thresholds."""
    folder = tmp_path_factory.mktemp(request.param)
    save_parts(folder / "parts")
    config, own = copy.deepcopy(DIGITS), {"channels": 1}
    if request.param == "colour":
        own = {"channels": 3, "transforms": "imagenet"}
    own |= {"data_dir": str(folder / "parts"), "image_size": 28, "batch_size": 8}
    own["num_workers"] = 0
    config["arch"]["args"] = {"num_classes": 2, "in_channels": own["channels"]}
    config["data_loader"] = {"type": "ImageFolderDataLoader", "args": own}
    config["trainer"] |= {"save_dir": str(folder / "saved"), "epochs": 3}
    (folder / "config.json").write_text(json.dumps(config | {"metrics": []}), encoding="utf-8")
    assert train_script.main(["-c", str(folder / "config.json")]) == 0
    [made] = runs(folder)
    assert test_script.main(["-r", str(made), "-s", *BAND]) == 0
    return made


@pytest.fixture
def run(trained, tmp_path):
    """A copy of that run, which a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "saved" / "models" / "Digits" / "run"))


@pytest.fixture(scope="module")
def with_file(trained, tmp_path_factory):
    """Such a run with the file that takes images."""
    folder = tmp_path_factory.mktemp("exported") / "saved" / "models" / "Digits" / "run"
    made = Path(shutil.copytree(trained, folder))
    assert export(made, "-s", IMAGE, "exporter.args.softmax=true") == 0
    return made


@pytest.fixture
def run_with_file(with_file, tmp_path):
    """A copy of that one."""
    return Path(shutil.copytree(with_file, tmp_path / "saved" / "models" / "Digits" / "run"))


def export(run, *arguments):
    return export_script.main(["-r", str(run), *map(str, arguments)])


def table(folder, name="predictions.csv"):
    with open(folder / name, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def decide(file, path):
    """What the file says about an image as Pillow decodes it."""
    session = onnxruntime.InferenceSession(file)
    pixels = np.asarray(Image.open(path).convert("RGB"))[None]
    return session.run(["decision", "confidence"], {"input": pixels})


@pytest.mark.parametrize("transforms", ["none", "imagenet", "crop"])
def test_preparation_is_the_loaders(transforms):
    steps = {
        "none": [],
        "imagenet": [v2.Resize(32), v2.CenterCrop((24, 28))],
        "crop": [CropRegion((0.1, 0.2, 0.8, 0.9)), v2.Resize((40, 30)), v2.Grayscale(3)],
    }[transforms]
    pipeline = Pipeline(steps, (28, 28), torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    preparation = ImagePreparation(pipeline, 3)
    generator = torch.Generator().manual_seed(0)
    for size in SIZES:
        images = torch.randint(256, (2, 3, *size), generator=generator, dtype=torch.uint8)
        wanted = torch.stack([pipeline(image) for image in images]) * 255
        off = (preparation(images).float() - wanted).abs()
        if max(size) <= 4 * 24:
            assert off.max() < 0.01
        else:  # their sums do not fit into float32
            assert off.max() < 1.01
            assert (off > 0.5).float().mean() < 0.001


def test_grey_is_pillows():
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 3)).astype(np.uint8)
    pipeline = Pipeline([], (28, 28), torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    grey = ImagePreparation(pipeline, 1)(images)[0, 0]
    assert np.array_equal(grey, Image.fromarray(pixels).convert("L"))


def test_decision_of_the_file_is_the_checkpoints(run_with_file):
    run = run_with_file
    proof = json.loads((run / "export.json").read_text("utf-8"))["proof"]
    assert proof["decisions"] == proof["agreement"] == 1
    file, rows = run / "model.onnx", table(run / "test")
    numbers = {"NG": 0, "OK": 1, "unsure": -1}
    assert {row["decision"] for row in rows} == set(numbers)
    for row in rows:
        number, confidence = decide(file, row["sample"])
        assert number[0] == numbers[row["decision"]]
        assert confidence[0] == pytest.approx(float(row["confidence"]), abs=0.01)
    assert test_script.main(["-r", str(file)]) == 0
    own = table(run / "test" / "model.onnx")
    for key in ("sample", "true", "predicted", "decision"):
        assert [row[key] for row in own] == [row[key] for row in rows]
    images = [str(Path(rows[0]["sample"]).parent)]
    for resumed in (run, file):
        assert test_script.main(["-r", str(resumed), "--images", *images]) == 0
    both = (table(folder / "images") for folder in (run / "test", run / "test" / "model.onnx"))
    one, two = ([row["decision"] for row in rows] for rows in both)
    assert one == two


def test_thresholds_in_the_graph_follow_a_test_of_the_file(run_with_file, capsys):
    run = run_with_file
    file, paths = run / "model.onnx", [row["sample"] for row in table(run / "test")]
    before = [int(decide(file, path)[0][0]) for path in paths]
    assert -1 in before
    again = ["-r", str(file), "-s", "inspection.target=NG", "inspection.max_escape=0.3"]
    assert test_script.main(again) == 0
    names = {"NG": 0, "OK": 1}
    rows = table(run / "test" / "model.onnx")
    after = [int(decide(file, path)[0][0]) for path in paths]
    assert after == [names[row["predicted"]] for row in rows] != before
    stored = onnx_file.load(file)
    assert stored["decision"]["threshold"] == stored["inspection"]["threshold"]
    record = json.loads((run / "export.json").read_text("utf-8"))["files"]["model.onnx"]
    assert record == onnx_file.fingerprint(file)
    capsys.readouterr()
    assert test_script.main(["-r", str(file), "-s", "inspection.target=OK"]) == 2
    assert "the decision in its graph is for another" in capsys.readouterr().err


def test_export_says_by_what_the_file_decides(run, capsys):
    threshold = json.loads((run / "test" / "result.json").read_text("utf-8"))["inspection"]
    rule = f"NG from a probability of {threshold['threshold']:.4g} on, below "
    said = {IMAGE: "decides: ", "exporter.args.preprocess=true": "is to decide: "}
    for setting, words in said.items():
        capsys.readouterr()
        assert export(run, "-s", setting) == 0
        text = capsys.readouterr().out
        assert words + rule in text
        assert ("exporter.args.preprocess=image puts" in text) is (setting != IMAGE)


def test_report_of_a_file_in_half_precision_has_the_files_thresholds(run, capsys):
    settings = IMAGE, "exporter.args.precision=fp16", "exporter.args.max_accuracy_drop=0.5"
    assert export(run, "-s", *settings) == 0
    stored = onnx_file.load(run / "model.onnx")
    about = json.loads((run / "export.json").read_text("utf-8"))["metadata"]
    for key in ("inspection", "decision"):
        assert about[key] == stored[key]
    threshold = stored["inspection"]["threshold"]
    assert f"NG from a probability of {threshold:.4g} on" in capsys.readouterr().out


def test_folder_leads_to_a_file_that_decides(tmp_path, capsys):
    save_parts(tmp_path / "parts")
    text = configuration(tmp_path / "parts", "NG", None)
    (tmp_path / "parts.json").write_text(text, encoding="utf-8")
    changes = [f"trainer.save_dir={json.dumps(str(tmp_path / 'saved'))}", "trainer.epochs=1"]
    assert train_script.main(["-c", str(tmp_path / "parts.json"), "-s", *changes]) == 0
    [made] = runs(tmp_path)
    assert test_script.main(["-r", str(made)]) == 0
    capsys.readouterr()
    assert export_script.main(["-r", str(made)]) == 0
    assert "model.onnx decides: NG from a probability of " in capsys.readouterr().out
    names = ["NG", "OK", "unsure"]
    for row in table(made / "test"):
        assert names[decide(made / "model.onnx", row["sample"])[0][0]] == row["decision"]


def test_without_thresholds_the_likeliest_class_is_decided_on(
    tmp_path, image_config, train, capsys
):
    save_parts(tmp_path / "parts", 8)
    made = train(image_config(tmp_path / "parts"))
    assert export(made, "-s", IMAGE, "inspection.target=NG") == 0
    said = capsys.readouterr().out
    assert "decides: the likeliest class: no threshold has been found yet" in said
    session = onnxruntime.InferenceSession(made / "model.onnx")
    for path in (tmp_path / "parts" / "test").glob("*/*"):
        pixels = np.asarray(Image.open(path))[None]
        output, decision, confidence = session.run(None, {"input": pixels})
        probability = np.exp(output[0]) / np.exp(output[0]).sum()
        assert decision[0] == output[0].argmax()
        assert confidence[0] == pytest.approx(probability.max(), abs=1e-5)


def test_opencv_decodes_the_same(with_file):
    pytest.importorskip("cv2")
    report = json.loads((with_file / "export.json").read_text("utf-8"))
    assert report["proof"]["opencv"]["same"] == report["proof"]["opencv"]["files"] == 60


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([IMAGE, "exporter.args.opset=17"], '"image" needs 18 or more'),
        ([IMAGE, 'data_loader.args.transforms={"eval": ["LocalContrast"]}'], "cannot export"),
        ([IMAGE, 'data_loader.args.transforms={"eval": [{"type": "Resize", "args": {"size": 30, '
          '"antialias": false}}]}'], "only Resize with bilinear"),
    ],
)  # fmt: skip
def test_what_cannot_be_in_the_file_is_said(
    tmp_path, image_config, train, arguments, sentence, capsys
):
    save_parts(tmp_path / "parts", 4)
    made = train(image_config(tmp_path / "parts"))
    capsys.readouterr()
    assert export(made, "-s", *arguments) in (1, 2)
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_other_data_is_refused(digits, train, capsys):
    made = train(digits({"trainer.epochs": 1}))
    capsys.readouterr()
    assert export(made, "-s", IMAGE) == 2
    assert "DigitsDataLoader cannot say how an image is decoded" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "exact"),
    [
        (["exporter.args.batch=4"], True),
        (["exporter.args.batch=4", IMAGE], True),
        (["exporter.args.batch=4", "exporter.args.opset=13", IMAGE.replace("image", "true")], True),
        (["exporter.args.precision=fp16"], False),
        (["exporter.args.precision=fp16", IMAGE], False),
        (["exporter.type=OpenVinoExporter"], True),
        (["exporter.type=OpenVinoExporter", IMAGE], True),
    ],
)
def test_other_files_are_proven_compared_and_tested(run, arguments, exact, capsys):
    """60 samples in batches that 4 does not divide; from the proof to the table of predictions."""
    stem, kind = "model", ""
    if "OpenVino" in arguments[0]:
        pytest.importorskip("openvino")
        stem, kind = "model.openvino", ".openvino"
    assert export(run, "--int8", "-s", *arguments, "exporter.args.max_accuracy_drop=0.1") == 0
    report = json.loads((run / f"export{kind}.json").read_text("utf-8"))
    assert report["proof"]["passed"]
    assert report["int8"]["passed"]
    files = [run / f"{stem}.onnx", run / f"{stem}.int8.onnx"]
    assert report["files"].keys() == {file.name for file in files}
    assert export(run, "--compare", run, *files) == 0
    rows = table(run / "compare", "compare.csv")
    assert all(float(row["from_file_ms"]) > 0 for row in rows)
    assert [float(row["accuracy"]) for row in rows[:2]] == pytest.approx(
        [report["metrics"]["checkpoint"]["accuracy"]] * 2, abs=0 if exact else 0.05
    )
    own = table(run / "test")
    assert test_script.main(["-r", str(files[0])]) == 0
    other = table(run / "test" / files[0].name)
    assert len(other) == len(own) == 60
    if exact:
        assert [row["decision"] for row in other] == [row["decision"] for row in own]
    one, two = (np.array([float(row["p(NG)"]) for row in rows]) for rows in (own, other))
    assert np.abs(one - two).max() < (0.01 if exact else 0.05)


def test_decision_at_a_threshold_may_be_rounded_to_either_side(monkeypatch):
    monkeypatch.setattr(proof, "decode_with_opencv", lambda *arguments: None)
    rule = baked({"target": "NG", "threshold": 0.4, "sure_threshold": 0.6, "temperature": 1.0})
    network = SimpleNamespace(state={"decision": rule, "classes": ["NG", "OK"]})
    of_target = np.array([0.400001, 0.7, 0.1, 0.599999], np.float32)
    reference = SimpleNamespace(probabilities=np.stack([of_target, 1 - of_target], 1))
    for decisions, same, rounding in (
        ([-1, 0, 1, -1], 1.0, 0),
        ([1, 0, 1, 0], 0.5, 2),
        ([-1, 1, 1, -1], 0.75, 0),
        ([1, 1, 1, -1], 0.5, 1),
    ):
        exported = SimpleNamespace(decisions=np.array(decisions))
        found = proof.prove_decisions(None, network, reference, exported)
        assert (found["decisions"], found["rounding"]) == (same, rounding)
