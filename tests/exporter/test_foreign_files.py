"""An exported file's own config names no more than a checkpoint's."""

import importlib
import json

import pytest
import torch

from exporter import onnx_file
from tests.conftest import DIGITS
from tests.utils.test_trust import SCRIPTS, WHERE, place, trap  # noqa: F401 (a fixture)


@pytest.fixture
def write_file(tmp_path):
    """A function that writes a small .onnx file with a config in its metadata."""
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3]) for n in ("a", "b")]
    graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "net", *zip(values))
    model = helper.make_model(graph)

    def write(config):
        path = tmp_path / "model.onnx"
        about = {"classes": None, "input": {"shape": [3]}, "epoch": 1, "arch": "LeNet"}
        onnx_file.save(model, path, {}, about | {"config": config})
        return path

    return write


MORE = {
    "onnx.load": {"f": "x.onnx"},
    "onnx.hub.load": {"model": "mnist"},
    "onnxruntime.InferenceSession": {"path_or_bytes": "x.onnx"},
    "onnxscript.optimizer.optimize": {"model": "x.onnx"},
    "torch.onnx.export": {"model": None, "f": "x.onnx"},
}


def run_all(trapped, write_file, script, wheres):
    gadgets, assert_nothing_ran = trapped
    gadgets |= MORE
    main = importlib.import_module(script).main
    for number, (name, args) in enumerate(gadgets.items()):
        for where in wheres or [WHERE[number % len(WHERE)]]:
            path = write_file(place(DIGITS, where, name, args))
            assert main(["-r", str(path), "-d", "cpu"]) == 2
    assert_nothing_ran()


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_gadget_of_a_file_runs_in_any_script(trap, write_file, script, capsys):  # noqa: F811
    run_all(trap, write_file, script, [])
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_no_gadget_of_a_file_runs_in_any_section(trap, write_file, script):  # noqa: F811
    run_all(trap, write_file, script, WHERE)


def test_compare_asks_the_same_of_each(trap, write_file, exported, capsys):  # noqa: F811
    import export

    _, assert_nothing_ran = trap
    path = write_file(place(DIGITS, "arch", "hubconf.x", {}))
    older = ["-s", "exporter.args.opset=13"]  # takes a tenth of the time
    assert export.main(["--compare", str(exported / "model_best.pth"), str(path), *older]) == 2
    assert f"the config in {path}" in capsys.readouterr().err
    state = torch.load(exported / "model_best.pth", weights_only=True)
    state["config"] = place(state["config"], "loss", "hubconf.x", {})
    torch.save(state, exported / "model_best.pth")
    assert export.main(["--compare", str(exported / "model.onnx"), str(exported), *older]) == 2
    assert '"hubconf.x" is named by a checkpoint' in capsys.readouterr().err
    assert_nothing_ran()


def test_info_of_a_file_names_its_checkpoint(exported, capsys):
    import export

    assert export.main(["-r", str(exported / "model.onnx"), "--info"]) == 0
    shown = capsys.readouterr().out
    origin = json.loads(onnx_file.entries(_model(exported / "model.onnx"))["origin"])
    assert origin["digest"] in shown
    assert origin["checkpoint"] in shown
    assert f"torch {torch.__version__}" in shown


def _model(path):
    import onnx

    return onnx.load(path)
