"""Files of networks that a GPU trained: `python -m pytest -m gpu -n 0`."""

import json

import onnxruntime
import pytest

import export as export_script
import test as script

pytestmark = pytest.mark.gpu


def test_file_is_proven_and_tested(gpu, digits, train):
    run = train(digits({"trainer.epochs": 2, "engine": {"precision": "bf16"}}))
    assert export_script.main(["-r", str(run)]) == 0
    assert script.main(["-r", str(run)]) == 0
    assert script.main(["-r", str(run / "model.onnx")]) == 0
    one, two = (
        json.loads((run / "test" / name / "result.json").read_text(encoding="utf-8"))
        for name in ("", "model.onnx")
    )
    assert two["accuracy"] == pytest.approx(one["accuracy"], abs=0.005)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)


def test_file_on_the_gpu_where_onnxruntime_knows_it(gpu, digits, train, capsys):
    run = train(digits({"trainer.epochs": 1}))
    assert export_script.main(["-r", str(run)]) == 0
    knows = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    code = script.main(["-r", str(run / "model.onnx"), "-d", "0"])
    assert code == (0 if knows else 2)
    assert knows or "CUDAExecutionProvider is missing" in capsys.readouterr().err
