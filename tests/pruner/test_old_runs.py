"""A pruning run of the version before November 2026 is resumed, and ends as it ended then."""

import csv
from pathlib import Path

import torch

import prune as prune_script

OLD_RUN = Path(__file__).parent / "old_runs" / "prune"


def read_rows(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def test_old_pruning_run_is_resumed_to_the_same_network(old_run):
    run, arguments = old_run(OLD_RUN)
    assert prune_script.main(["-r", str(run), *arguments]) == 0
    state, expected = (
        torch.load(path, weights_only=True)
        for path in (run / "model_best.pth", OLD_RUN / "final_best.pth")
    )
    assert state["structure"] == expected["structure"]
    torch.testing.assert_close(
        dict(state["state_dict"]), dict(expected["state_dict"]), rtol=1e-3, atol=1e-5
    )
    rows, old_rows = read_rows(run / "prune" / "steps.csv"), read_rows(OLD_RUN / "steps.csv")
    assert all(old.keys() <= row.keys() for row, old in zip(rows, old_rows, strict=True))
    for name in ("step", "channels", "macs", "params", "epochs", "checkpoint"):
        assert [row[name] for row in rows] == [row[name] for row in old_rows]
