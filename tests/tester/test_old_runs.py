"""A run of the version before November 2026 is tested, with the same result."""

import csv
import json
from pathlib import Path

import pytest

import test as test_script

OLD_RUN = Path(__file__).parent / "old_runs" / "finished"


def read_rows(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def test_old_run_is_tested_with_the_same_result(old_run):
    run, arguments = old_run(OLD_RUN)
    assert test_script.main(["-r", str(run), *arguments]) == 0
    result, expected = (
        json.loads((folder / "result.json").read_text()) for folder in (run / "test", OLD_RUN)
    )
    assert result.keys() == expected.keys() | {"origin", "novelty"}
    for name in ("loss", "accuracy"):
        assert result[name] == pytest.approx(expected[name], rel=1e-4)
    found, stored = result.pop("inspection"), expected.pop("inspection")
    for rule in ("at_threshold", "at_likeliest"):  # counts and bounds are new
        assert {key: found[rule][key] for key in stored[rule]} == stored[rule]
        found[rule] = stored[rule]
    assert found == stored
    assert result["per_class"] == expected["per_class"]
    rows, old_rows = (read_rows(f / "predictions.csv") for f in (run / "test", OLD_RUN))
    assert list(rows[0]) == [*old_rows[0], "distance"]
    for row, old in zip(rows, old_rows, strict=True):
        assert (row["true"], row["predicted"]) == (old["true"], old["predicted"])
        assert float(row["p(NG)"]) == pytest.approx(float(old["p(NG)"]), abs=1e-4)
