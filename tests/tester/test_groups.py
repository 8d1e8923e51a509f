"""Results by lot, against those counted from predictions.csv."""

import collections
import csv
import json

import test as script
from tests.conftest import save_images


def test_results_of_each_lot(tmp_path, image_config, train):
    folder = tmp_path / "parts"
    save_images(folder, {"NG": 24, "OK": 36})
    for path in [*folder.glob("*/*.png")]:
        path.rename(path.with_name(f"lot{int(path.stem) % 6}_{path.name}"))
    loader = {"split": [0.4, 0.3, 0.3], "group": "^(lot\\d+)_"}
    config = image_config(folder, **loader) | {"inspection": {"target": "NG"}}
    config["trainer"] |= {"epochs": 1}
    run = train(config)
    assert script.main(["-r", str(run), "--split", "train"]) == 0
    result = json.loads((run / "test" / "result_train.json").read_text())
    with open(run / "test" / "predictions_train.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    expected = collections.defaultdict(collections.Counter)
    for row in rows:
        lot = row["sample"].rpartition("/")[2].partition("_")[0]
        is_target, called = row["true"] == "NG", row["predicted"] == "NG"
        counted = {"n": 1, "wrong": is_target != called, "targets": is_target}
        counted |= {"others": not is_target, "missed": is_target and not called}
        expected[lot].update(counted | {"false": called and not is_target})
    assert len(expected) > 1
    assert result["per_group"] == {
        lot: {name: int(count) for name, count in counts.items()}
        for lot, counts in expected.items()
    }
    shares = [row["wrong"] / row["n"] for row in result["per_group"].values()]
    assert shares == sorted(shares, reverse=True)
    page = (run / "test" / "report_train.html").read_text(encoding="utf-8")
    assert "<h2>Groups</h2>" in page
