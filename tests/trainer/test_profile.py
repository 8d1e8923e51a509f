"""train.py --profile: where the time goes."""

import json
import re

import pytest

from tests.conftest import build
from trainer.profile import PARTS, profile
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


def test_profiled_methods_are_restored(digits):
    from trainer import Meters

    trainer, update = build(digits({"trainer.epochs": 1})), Meters.update
    assert list(profile(trainer, 3)) == list(PARTS)
    assert trainer.engine.forward.__func__ is type(trainer.engine).forward
    assert trainer.task.step.__func__ is type(trainer.task).step
    assert Meters.update is update
