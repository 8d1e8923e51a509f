"""Latency in onnxruntime: measured fairly, with clear errors. No test asserts a time."""

import statistics

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from exporter.latency import interleaved, ratio, session, spread
from utils.errors import UserError


@pytest.fixture
def doubling(tmp_path):
    """A file that doubles its input."""
    shape = ["batch", 3]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name in ("input", "output")
    ]
    graph = helper.make_graph(
        [helper.make_node("Add", ["input", "input"], ["output"])],
        "doubling",
        values[:1],
        values[1:],
    )
    file = tmp_path / "doubling.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file
    )
    return file


def test_session_opens_a_file_or_its_bytes(doubling):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for model in (doubling, doubling.read_bytes()):
        opened = session(model, threads=2)
        assert np.array_equal(opened.run(None, {"input": x})[0], 2 * x)
        options = opened.get_session_options()
        assert options.intra_op_num_threads == 2
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_damaged_files_and_missing_devices_are_reported(doubling, monkeypatch):
    whole = doubling.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"PK\x03\x04" + whole):
        doubling.write_bytes(damaged)
        with pytest.raises(UserError, match=r"doubling\.onnx cannot be read"):
            session(doubling)
    with pytest.raises(UserError, match="there is no file"):
        session(doubling.with_name("none.onnx"))
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UserError, match=r"CUDAExecutionProvider is missing.*-d cpu"):
        session(whole, device="cuda:0")


def test_each_round_calls_each_function_once_in_random_order():
    calls = []
    times = interleaved(
        {name: lambda name=name: calls.append(name) for name in "abc"}, rounds=40, warm_up=2
    )
    assert {name: len(t) for name, t in times.items()} == {"a": 40, "b": 40, "c": 40}
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(rounds) == 42
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert {(one[0], one[1]) for one in rounds} == {(a, b) for a in "abc" for b in "abc" if a != b}


def test_ratio_is_the_median_over_rounds():
    times = {"a": [1.0, 2.0, 30.0], "b": [2.0, 4.0, 10.0]}
    assert ratio(times, "a", "b") == 0.5
    times = {"a": [1.0, 9.0, 4.0], "b": [1.0, 3.0, 8.0]}
    assert ratio(times, "a", "b") == 1.0  # the ratio of the medians would be 4 / 3
    values = list(np.random.default_rng(0).random(100))
    assert spread(values)["p50"] == statistics.median(values)
    assert spread(values)["p95"] == pytest.approx(np.percentile(values, 95), abs=0.02)
