"""MLflow's own server shows a run, what was made of it, and what was found, as one lineage."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

import export as export_script
import prune as prune_script
import test as test_script
import train as train_script
from tests.conftest import runs


@pytest.fixture
def server(tmp_path):
    """The address of an MLflow server with a data base of its own."""
    pytest.importorskip("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "mlflow"
    folder.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    store = f"sqlite:///{folder}/mlflow.db"
    command += ["--backend-store-uri", store, "--artifacts-destination", str(folder / "files")]
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | {"GIT_PYTHON_REFRESH": "quiet"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    for _ in range(1200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert process.poll() is None, "mlflow server has ended"
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    os.killpg(process.pid, 15)
    process.wait()


@pytest.mark.slow
def test_mlflows_server_shows_train_prune_export_as_one_lineage(digits, train, server, tmp_path):
    from mlflow import MlflowClient

    trackers = [{"type": "MlflowTracker", "args": {"uri": server, "experiment": "Digits 数字"}}]
    config = digits({"trackers": trackers})
    run = train(config)
    assert train_script.main(["-r", str(run), "--epochs", "3"]) == 0
    assert test_script.main(["-r", str(run)]) == 0
    pruner = {"type": "MagnitudePruner", "args": {"iterative_steps": 1, "channel_sparsity": 0.3}}
    file = tmp_path / "prune.json"
    file.write_text(json.dumps(digits({"trackers": trackers, "pruner": pruner}, name="Pruned")))
    assert prune_script.main(["-c", str(file), "-r", str(run)]) == 0
    [pruned] = [folder for folder in runs(tmp_path) if folder.parent.name == "Pruned"]
    assert export_script.main(["-r", str(pruned)]) == 0
    client = MlflowClient(server, server)
    [experiment] = [e for e in client.search_experiments() if e.name == "Digits 数字"]
    shown = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    trained, cut = shown[f"{run.parent.name}/{run.name}"], shown[f"Pruned/{pruned.name}"]
    assert len(shown) == 2
    assert {r.info.status for r in shown.values()} == {"FINISHED"}
    assert cut.data.tags["mlflow.parentRunId"] == trained.info.run_id
    history = client.get_metric_history(trained.info.run_id, "val_accuracy")
    log = (run.parents[2] / "log" / run.parent.name / run.name / "metrics.csv").read_text()
    assert len(history) == len(log.splitlines()) - 1 == 3
    assert trained.data.params["optimizer.args.lr"] == str(config["optimizer"]["args"]["lr"])
    assert "model_best.pth.test.accuracy" in trained.data.metrics
    assert "export.model.onnx.accuracy" in cut.data.metrics
    files = {f.path for f in client.list_artifacts(cut.info.run_id, "export")}
    assert files == {"export/export.json", "export/model.onnx"}
