"""Files of the version before November 2026: a checkpoint is exported, an .onnx file is tested."""

import json
from pathlib import Path

import pytest

import export as export_script
import test as test_script

OLD_FILES = Path(__file__).parent / "old_runs"


@pytest.fixture
def copied(old_run):
    return old_run(OLD_FILES)


def test_old_onnx_file_is_tested_with_the_same_result(copied):
    run, arguments = copied
    assert test_script.main(["-r", str(run / "model.onnx"), *arguments]) == 0
    result = json.loads((run / "test" / "model.onnx" / "result.json").read_text())
    expected = json.loads((OLD_FILES / "result.json").read_text())
    assert result["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert result["accuracy"] == expected["accuracy"]
    found, stored = result["inspection"], expected["inspection"]
    for rule in ("at_threshold", "at_likeliest"):  # counts and bounds are new
        found[rule] = {key: found[rule][key] for key in stored[rule]}
    assert found == stored


def test_old_checkpoint_is_exported(copied):
    run, arguments = copied
    assert export_script.main(["-r", str(run / "model_best.pth"), *arguments]) == 0
    assert json.loads((run / "export.json").read_text())["passed"]
