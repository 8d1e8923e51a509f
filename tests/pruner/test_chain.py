"""--info on a file tells the whole way: the data, each run, each cut, each figure."""

import json

import numpy as np
import pytest
from PIL import Image

import export as export_script
import prune as prune_script
import test as test_script
from tests.conftest import runs, save_images


@pytest.fixture
def pruned(tmp_path, image_config, train):
    """A network that was trained on images, pruned, and exported as int8: its run's folder."""
    for subset, count in (("train", 24), ("val", 12), ("test", 8)):
        save_images(tmp_path / "parts" / subset, {"NG": count, "OK": count})
    first = train(image_config(tmp_path / "parts"))
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    config["name"] = "Smaller"
    config["pruner"] = {
        "type": "MagnitudePruner",
        "args": {"iterative_steps": 2, "channel_sparsity": 0.4, "round_to": 1},
    }
    config["trainer"] |= {"type": "PruneTrainer", "epochs": 1}
    (tmp_path / "prune.json").write_text(json.dumps(config), encoding="utf-8")
    assert prune_script.main(["-c", str(tmp_path / "prune.json"), "-r", str(first)]) == 0
    [run] = [run for run in runs(tmp_path) if run.parent.name == "Smaller"]
    options = ["exporter.args.preprocess=image", "exporter.args.max_accuracy_drop=0.5"]
    assert export_script.main(["-r", str(run), "--int8", "-s", *options]) == 0
    return run


@pytest.mark.slow
def test_a_pruned_quantized_file_names_all_that_made_it(pruned, tmp_path, capsys):
    file = pruned / "model.int8.onnx"
    capsys.readouterr()
    assert test_script.main(["-r", str(file), "--info"]) == 0
    shown = capsys.readouterr().out
    report = json.loads((pruned / "export.json").read_text("utf-8"))
    record = report["origin"]
    cuts, start = record["figures"]["cuts"], record["made_from"]
    assert [cut["step"] for cut in cuts] == [0, 1, 2]
    words = [str(tmp_path / "parts"), record["digest"], record["data"], start["digest"]]
    words += [f"macs {cut['macs']}" for cut in cuts]
    words += ["trained on 48, validated on 24", "a checkpoint of Digits", "samples 48"]
    words += [f"val_accuracy {start['figures']['val_accuracy']:.4g}", "accuracy_drop"]
    for word in words:
        assert word in shown
    assert record["data"] == start["data"]  # both were trained on the same images
    # changed data is noticed in a test of the file
    warning = "the training images are not those"
    assert test_script.main(["-r", str(file)]) == 0
    assert warning not in capsys.readouterr().out
    image = tmp_path / "parts" / "train" / "NG" / "0.png"
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(image)
    image.with_name("1.png").unlink()
    assert test_script.main(["-r", str(file)]) == 0  # the new image was not read yet
    from data_loader.image_folder import ImageFolderDataLoader

    loader = ImageFolderDataLoader(str(tmp_path / "parts"), image_size=28, channels=1, cache=None)
    loader.check()
    capsys.readouterr()
    assert test_script.main(["-r", str(file)]) == 0
    assert warning in capsys.readouterr().out
