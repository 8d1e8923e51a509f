"""Pruning on a GPU: `python -m pytest -m gpu -n 0`."""

import csv
import json

import pytest

import prune as script
from tests.conftest import assert_same, last_checkpoint, runs
from tests.pruner.test_prune import PRUNE, comparable

pytestmark = pytest.mark.gpu


def test_run_with_files_trains_as_one_without(gpu, digits, train, tmp_path, monkeypatch):
    """The proof of each file computes in float32 on the CPU, and changes no weight."""
    monkeypatch.setattr("exporter.latency.SECONDS", 0.1)
    trained = train(digits({"trainer.epochs": 2}))
    made = []
    for changes in ({}, {"trainer.save_onnx": "step"}):
        changes = {"engine": {"deterministic": True}, **changes}
        config = digits(changes, **json.loads(json.dumps(PRUNE)))
        config["pruner"]["args"]["importance"] = "TaylorImportance"
        (tmp_path / "prune.json").write_text(json.dumps(config))
        before = set(runs(tmp_path))
        assert script.main(["-c", str(tmp_path / "prune.json"), "-r", str(trained)]) == 0
        made += set(runs(tmp_path)) - before
    plain, with_files = (comparable(last_checkpoint(run)) for run in made)
    assert_same(plain["state_dict"], with_files["state_dict"])
    assert (made[1] / "prune" / "step2.onnx").exists()
    with open(made[1] / "prune" / "steps.csv", encoding="utf-8-sig", newline="") as file:
        assert all(float(row["torch_ms"]) > 0 for row in csv.DictReader(file))
