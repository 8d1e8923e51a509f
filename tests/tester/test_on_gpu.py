"""Tests on a GPU: `python -m pytest -m gpu -n 0`."""

import json

import pytest

import test as script
from tests.conftest import save_images

pytestmark = pytest.mark.gpu


def test_images_in_folders_are_trained_tested_and_explained(gpu, image_config, train, tmp_path):
    for subset in ("train", "val", "test"):
        save_images(tmp_path / "parts" / subset, {"NG": 12, "OK": 20})
    config = image_config(tmp_path / "parts", num_workers=2, channels=3)
    config["heatmap"] = {"method": "SmoothGradCAMpp"}
    run = train(config)
    results = []
    for device in (["-d", "cpu"], []):
        assert script.main(["-r", str(run), *device]) == 0
        results.append(json.loads((run / "test" / "result.json").read_text(encoding="utf-8")))
    on_cpu, on_gpu = results
    assert on_gpu["loss"] == pytest.approx(on_cpu["loss"], rel=1e-3)
    assert on_gpu["accuracy"] == on_cpu["accuracy"]
