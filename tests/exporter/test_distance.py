"""An exported file that says how unlike the training data a sample is: as its checkpoint says."""

import csv

import numpy as np
import onnxruntime
import pytest

import export as export_script
import test as test_script
from exporter import onnx_file


def column(file, name):
    with open(file, newline="", encoding="utf-8-sig") as table:
        return [float(row[name]) for row in csv.DictReader(table)]


@pytest.mark.parametrize("opset", ["13", pytest.param("null", marks=pytest.mark.slow)])
def test_second_output_is_the_distance(digits, train, opset, capsys):
    run = train(digits({"inspection": {"target": "8"}, "trainer.epochs": 1}))
    export = ["-r", str(run), "-s", f"exporter.args.opset={opset}", "exporter.args.distance=true"]
    assert export_script.main(export) == 2
    assert "test it first" in capsys.readouterr().err
    assert test_script.main(["-r", str(run)]) == 0
    assert export_script.main(export) == 0
    file = run / "model.onnx"
    assert test_script.main(["-r", str(file)]) == 0
    ours = column(run / "test" / "predictions.csv", "distance")
    theirs = column(run / "test" / "model.onnx" / "predictions.csv", "distance")
    assert np.allclose(ours, theirs, rtol=1e-3)
    session = onnxruntime.InferenceSession(file)
    assert [output.name for output in session.get_outputs()] == ["output", "distance"]
    assert onnx_file.load(file)["novelty"]["samples"] > 0


def test_without_the_option_there_is_one_output(digits, train):
    run = train(digits({"inspection": {"target": "8"}, "trainer.epochs": 1}))
    assert test_script.main(["-r", str(run)]) == 0
    assert export_script.main(["-r", str(run), "-s", "exporter.args.opset=13"]) == 0
    assert len(onnxruntime.InferenceSession(run / "model.onnx").get_outputs()) == 1
    kept = onnx_file.load(run / "model.onnx")["novelty"]
    assert kept.keys() == {"appearance", "labels"}
    assert test_script.main(["-r", str(run / "model.onnx")]) == 0
