"""A run is recorded by trackers, too, and never fails with them."""

import json
import socket

import train as train_script
from logger.base_tracker import BaseTracker, tell, watching


class Noting(BaseTracker):
    def __init__(self):
        self.calls = []

    def begin(self, run, config, parent):
        self.calls.append(("begin", run.name, config["name"], parent))

    def log(self, values, step):
        self.calls.append(("log", step, values["val_accuracy"]))

    def end(self, state):
        self.calls.append(("end", state))


class Failing(Noting):
    def log(self, values, step):
        super().log(values, step)
        raise ConnectionError("no route to host\nat line 3")


def test_failing_tracker_is_dropped_once_and_the_others_go_on(caplog):
    failing, noting = Failing(), Noting()
    trackers = [failing, noting]
    for step in (1, 2, 3):
        tell(trackers, "log", {"val_accuracy": 0.5}, step)
    assert (len(failing.calls), len(noting.calls)) == (1, 3)
    [record] = caplog.records
    assert record.message == (
        "trackers: Failing failed, and is not used any more: no route to host"
    )


def test_run_tells_what_it_does(digits, train, tmp_path):
    noting = Noting()
    with watching(noting):
        run = train(digits())
        assert train_script.main(["-r", str(run), "--epochs", "3"]) == 0
    names = [call[0] for call in noting.calls]
    assert names == ["begin", "log", "log", "end", "begin", "log", "end"]
    assert noting.calls[0][1] == noting.calls[4][1] == run.name
    assert noting.calls[3] == ("end", "finished")


def test_what_a_watcher_raises_ends_the_run(digits, tmp_path, capsys):
    (tmp_path / "c.json").write_text(json.dumps(digits()))
    with watching(Failing()):
        assert train_script.main(["-c", str(tmp_path / "c.json")]) == 2
    assert "no route to host" in capsys.readouterr().err


def test_unknown_tracker_is_a_fault_of_the_config(digits, tmp_path, capsys):
    (tmp_path / "c.json").write_text(json.dumps(digits({"trackers": ["MlflowTraker"]})))
    assert train_script.main(["-c", str(tmp_path / "c.json")]) == 2
    assert 'did you mean "MlflowTracker"?' in capsys.readouterr().err


def test_unreachable_server_costs_a_warning(digits, train, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    run = train(digits({"trackers": [{"type": "MlflowTracker", "args": {"uri": uri}}]}))
    assert (run / "model_best.pth").exists()
    assert capsys.readouterr().out.count("trackers: MlflowTracker failed") == 1
