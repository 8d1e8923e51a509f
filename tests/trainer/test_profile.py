"""train.py --profile: where the time goes."""

import json
import re

import pytest
import torch

from tests.conftest import SMALL_NETWORK, build
from trainer.profile import PARTS, Clock, profile
from utils import run_folder


def test_profile_names_all_parts_and_writes_a_trace(digits, train, capsys):
    run = train(digits(), "--profile", "6")
    printed = capsys.readouterr().out
    rows = re.findall(r"^(\w+) +[\d.]+ +([\d.]+)%", printed, re.MULTILINE)
    shares = {name: float(share) for name, share in rows}
    assert list(shares) == ["data", "forward", "backward", "optimizer", "logging"]
    assert sum(shares.values()) == pytest.approx(100, abs=0.5)
    assert all(share > 0 for share in shares.values())
    trace = json.loads((run_folder.log_dir_for(run) / "trace.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"]]
    assert names.count("backward") == 6
    assert not list(run.glob("*.pth"))


def test_network_with_batch_norms_is_profiled(digits, own_code):
    """Their statistics are recomputed at an epoch's end, with batches of another stream."""
    own_code("small_net", SMALL_NETWORK)
    times = profile(build(digits({"arch": "small_net.small"})), 3)
    assert all(milliseconds > 0 for milliseconds in times.values())


def test_profiled_methods_are_restored(digits):
    from trainer import Meters

    trainer, update = build(digits({"trainer.epochs": 1})), Meters.update
    assert list(profile(trainer, 3)) == list(PARTS)
    assert trainer.engine.forward.__func__ is type(trainer.engine).forward
    assert trainer.task.step.__func__ is type(trainer.task).step
    assert Meters.update is update


def test_times_are_those_of_the_profiler(digits, monkeypatch):
    """Of the labels that torch's profiler records on the CPU."""
    recorded = []

    class Recorded(torch.profiler.profile):
        def __exit__(self, *error):
            super().__exit__(*error)
            recorded.extend(self.events())

    monkeypatch.setattr("trainer.profile.torch_profile", Recorded)
    ours = profile(build(digits({"trainer.epochs": 1})), 5)
    for part in ("forward", "backward", "optimizer"):
        theirs = sum(event.cpu_time_total for event in recorded if event.name == part)
        assert ours[part] == pytest.approx(theirs / 5 / 1000, rel=0.3)


class Event:
    """A GPU's event: every one is 2 ms after the one before."""

    count = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Event.count += 1
        self.milliseconds = 2 * Event.count

    def elapsed_time(self, other):
        return other.milliseconds - self.milliseconds


def test_times_of_a_gpu_are_between_two_events_in_its_queue(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    clock = Clock(has_gpu=True)
    step = clock.timed("forward", lambda: clock.timed("logging", lambda: 7)())
    assert [step(), step()] == [7, 7]
    parts = dict.fromkeys(PARTS, 0.0) | {"forward": 2 * 3 * 0.002, "logging": 2 * 0.002}
    assert clock.gpu() == pytest.approx(parts)
    assert waited
    with pytest.raises(ZeroDivisionError):
        clock.timed("data", lambda: 1 / 0)()
    assert Clock(has_gpu=False).gpu() == dict.fromkeys(PARTS, 0.0)
