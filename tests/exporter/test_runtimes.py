"""Each kind of file for each kind of network, on real data: proven, compared, and tested."""

import csv
import json
import shutil

import pytest

import export as export_script
import test as test_script
import train as train_script
from tests.conftest import ROOT, runs

pytestmark = pytest.mark.slow

DROP = 0.05  # that int8 and fp16 may lose
KINDS = {
    "model.onnx": [],
    "fixed.onnx": ["batch=1"],
    "half.onnx": ["precision=fp16"],
    "intel.onnx": ["type=OpenVinoExporter"],
}
FLIPS = {"train": ["RandomHorizontalFlip"], "eval": []}
# config, data set, metric, changes
NETWORKS = {
    "resnet18": (
        "neu_resnet18.json", "neu_surface_defects", "accuracy",
        {"data_loader.args.image_size": 64, "data_loader.args.transforms": FLIPS},
    ),
    "mobilenet_v2": (
        "hymenoptera_resnet18_finetune.json", "hymenoptera_256", "accuracy",
        {"arch": {"type": "mobilenet_v2"}, "optimizer": {"type": "AdamW", "args": {"lr": 0.001}}},
    ),
    "unet": ("membranes_unet.json", "membranes", "mIoU", {}),
    "multilabel": ("two_digits_multilabel.json", None, "mAP", {"trainer.epochs": 5}),
}  # fmt: skip


@pytest.fixture(params=NETWORKS)
def trained(request, tmp_path, monkeypatch):
    """A run of 3 epochs, and the metric by which it is judged."""
    file, data, metric, changes = NETWORKS[request.param]
    changes = {"trainer.epochs": 3, "trainer.tensorboard": False} | changes
    if data is not None:
        source = request.getfixturevalue("kata_data") / data
        for subset in ("train", "val"):
            shutil.copytree(source / subset, tmp_path / data / subset)
        shutil.copytree(source / "val", tmp_path / data / "test")
        changes["data_loader.args.data_dir"] = str(tmp_path / data)
    if request.param == "mobilenet_v2":
        weights = request.getfixturevalue("kata_data") / "pretrained" / "mobilenet_v2_backbone.pth"
        changes |= {"weights": {"file": str(weights)}}
    changes["trainer.save_dir"] = str(tmp_path / "saved")
    options = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    assert train_script.main(["-c", str(ROOT / "configs" / file), "-s", *options]) == 0
    [run] = runs(tmp_path)
    return run, metric


def test_every_kind_of_file_is_as_good_as_the_checkpoint(trained):
    run, metric = trained
    for name, settings in KINDS.items():
        changes = [f"exporter.{'' if 'type' in word else 'args.'}{word}" for word in settings]
        int8 = [] if "precision=fp16" in settings else ["--int8"]
        limits = [f"exporter.args.max_accuracy_drop={DROP}", *changes]
        assert (
            export_script.main(["-r", str(run), "-o", str(run / name), *int8, "-s", *limits]) == 0
        )
    files = sorted(run.glob("*.onnx"))
    assert len(files) == len(KINDS) * 2 - 1
    for file in files:
        assert test_script.main(["-r", str(file)]) == 0
    assert export_script.main(["--compare", str(run), *map(str, files)]) == 0
    with open(run / "compare" / "compare.csv", encoding="utf-8-sig", newline="") as file:
        checkpoint, *others = csv.DictReader(file)
    assert len(others) == len(files)
    for row in others:
        exact = "int8" not in row["file"] and row["file"] != "half.onnx"
        allowed = 1e-3 if exact else DROP
        assert float(row[metric]) == pytest.approx(float(checkpoint[metric]), abs=allowed), row
        assert 0 < float(row["p50_ms"]) <= float(row["p95_ms"])
