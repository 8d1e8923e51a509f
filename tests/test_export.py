"""export.py: the file against the original network by hand, and what becomes of files that are not equal to it."""

import csv
import gc
import json
import xml.etree.ElementTree

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import export as script
import test as test_script
from base import BaseExporter
from data_loader.data_loaders import DigitsDataLoader
from exporter.onnx_exporter import OnnxExporter
from exporter.proof import in_sizes, prove
from model.model import LeNet
from pruner.pruners import MagnitudePruner
from tests.test_networks import CLASSES, FAMILIES, Settings
from trainer.start import build_network
from utils import checkpoint
from utils.errors import UserError
from utils.exported import Deployed, pictures_of
from utils.networks import head_of

LEGACY = "exporter.args.opset=13"  # written in a tenth of the time


def digits_by_hand(data_dir, subset="test"):
    """Pixels uint8 (N, 1, 28, 28), and what LeNet gives of them."""
    loader = DigitsDataLoader(str(data_dir)).of_subset(subset)
    return loader.samples.pictures, loader.samples.targets


def lenet(run):
    model = LeNet()
    model.load_state_dict(checkpoint.load(run / checkpoint.BEST)["state_dict"])
    return model.eval()


def read(file):
    with open(file, encoding="utf-8") as text:
        return json.load(text)


def metadata(file):
    return {entry.key: json.loads(entry.value) for entry in onnx.load(file).metadata_props}


@pytest.mark.parametrize("count", [1, 5, 64])
def test_the_file_takes_pixels_and_gives_the_networks_probabilities(exported_run, data_dir, count):
    session = onnxruntime.InferenceSession(exported_run / "model.onnx")
    pixels, _ = digits_by_hand(data_dir)
    [output] = session.run(["output"], {"input": pixels[:count].permute(0, 2, 3, 1).numpy()})
    with torch.no_grad():
        expected = lenet(exported_run)((pixels[:count].float() / 255 - 0.22) / 0.32).exp().numpy()
    assert np.allclose(output, expected, atol=1e-6)
    assert session.get_inputs()[0].shape[1:] == [28, 28, 1]
    assert not list(exported_run.glob("*.data"))
    assert not list(exported_run.glob(".*"))


def test_what_the_file_says_of_itself(exported_run):
    state, said = checkpoint.load(exported_run / checkpoint.BEST), metadata(exported_run / "model.onnx")
    assert said["name"] == "Digits"
    assert said["classes"] == [str(digit) for digit in range(10)]
    assert said["input"] == state["input"]
    assert (said["arch"], said["epoch"], said["versions"]) == ("LeNet", state["epoch"], state["versions"])
    assert {k: v for k, v in said["config"].items() if k != "exporter"} == state["config"]
    assert said["config"]["exporter"]["args"] == {"preprocess": True, "softmax": True, "max_accuracy_drop": 0.1}
    assert said["preprocess"]["resize"] == [28, 28]
    assert said["preprocess"]["colour"] == "grey"
    assert said["parameters"] == sum(p.numel() for p in LeNet().parameters())
    convolutions = 24 * 24 * 25 * 10 + 8 * 8 * 25 * 10 * 20
    assert said["macs"] == convolutions + 320 * 50 + 50 * 10
    assert metadata(exported_run / "model.int8.onnx") == said | {"int8": {"method": "minmax", "samples": 128}}


def test_the_proof_is_written_with_the_metrics_of_both(exported):
    report = read(exported / "export.json")
    assert report["passed"]
    assert report["split"] == "val"
    proof = report["proof"]
    assert proof["samples"] == 144
    assert proof["batch_sizes"] == [1, 5]
    assert proof["agreement"] == 1
    assert 0 < proof["relative_difference"] <= 1e-4
    assert test_script.main(["-r", str(exported), "--split", "val"]) == 0
    tested = read(exported / "test" / "result_val.json")
    for name in ("checkpoint", "model.onnx"):
        for metric in ("loss", "accuracy", "top_k_acc"):
            assert report["metrics"][name][metric] == pytest.approx(tested[metric], rel=1e-5)
    assert set(report["latency"]) == {"threads", "batch_size", "rounds", "model.onnx", "model.int8.onnx"}
    assert report["bytes"]["model.int8.onnx"] == (exported / "model.int8.onnx").stat().st_size


def test_int8_is_int8_by_channel_and_leaves_the_accuracy(exported_run, data_dir):
    model = onnx.load(exported_run / "model.int8.onnx")
    weights = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    convolutions = [w for w in weights.values() if w.dtype == np.int8 and w.ndim == 4]
    assert sorted(w.shape for w in convolutions) == [(10, 1, 5, 5), (20, 10, 5, 5)]
    scales = {len(np.atleast_1d(s)) for n, s in weights.items() if n.endswith("_scale") and s.size > 1}
    assert {10, 20} <= scales
    zero_points = [w for n, w in weights.items() if n.endswith("_zero_point")]
    assert any(w.dtype == np.uint8 for w in zero_points)
    pixels, targets = digits_by_hand(data_dir)
    given = {"input": pixels.permute(0, 2, 3, 1).numpy()}
    said = [onnxruntime.InferenceSession(exported_run / n).run(None, given)[0] for n in ("model.onnx", "model.int8.onnx")]
    right = [(output.argmax(1) == targets.numpy()).mean() for output in said]
    assert 0 < np.abs(said[0] - said[1]).max() < 0.2
    assert abs(right[0] - right[1]) < 0.03
    assert len(np.unique(said[1])) > 1000  # probabilities, not one of 256 steps


class Halfway(OnnxExporter):
    """Breaks what it writes.

    Args:
        factor: what one layer's weights are multiplied by
    """

    def __init__(self, factor: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def export(self, model, example, path, metadata):
        super().export(model, example, path, metadata)
        file = onnx.load(path)
        tensor = next(i for i in file.graph.initializer if i.name.endswith("conv2.weight"))
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(self.factor), tensor.name))
        onnx.save(file, path)


def test_weights_that_differ_by_one_percent_fail(exported, capsys):
    before = (exported / "model.onnx").read_bytes()
    broken = ["-r", str(exported), "--int8", "-s", "exporter.type=tests.test_export.Halfway", LEGACY]
    assert script.main([*broken, "exporter.args.factor=1.01"]) == 1
    report = read(exported / "export.json")
    assert not report["passed"]
    assert report["proof"]["relative_difference"] > 1e-4
    assert "does not say what the network says" in capsys.readouterr().err
    assert (exported / "model.onnx.failed").exists()
    assert (exported / "model.onnx").read_bytes() == before  # an earlier file that was proven stays
    assert "int8" not in report
    assert script.main([*broken, "exporter.args.factor=1.0"]) == 0


def test_a_proof_of_zeros_or_of_nothing_fails():
    output = np.random.default_rng(0).normal(size=(9, 4))
    assert prove(output, output + 1e-6)["passed"]
    assert not prove(output, output + 1e-2)["passed"]
    assert not prove(output * 0, output * 0)["passed"]
    assert not prove(output, output * np.nan)["passed"]
    tie = np.array([[1.0, 1.0 + 1e-7]])
    assert not prove(tie, tie[:, ::-1])["passed"]  # within rounding, but another class
    assert prove(output[:, :1], output[:, :1])["agreement"] is None


def test_batches_in_sizes_are_the_same_samples():
    data = torch.arange(23)
    made = list(in_sizes([(data[:10], data[:10]), (data[10:], data[10:])], (1, 5)))
    assert [len(part) for part, _ in made] == [1, 5, 1, 5, 1, 5, 1, 4]
    assert torch.equal(torch.cat([part for part, _ in made]), data)


@pytest.mark.parametrize(("drop", "method"), [("-1", "entropy"), ("0.1", "percentile")])
def test_int8_that_costs_too_much_is_marked(exported, capsys, monkeypatch, drop, method):
    if drop == "0.1":  # ranges of a calibration that never saw a digit
        monkeypatch.setattr("trainer.judge.Judge.training", lambda judge, count: torch.full((16, 1, 28, 28), 0.01))
    options = [f"exporter.args.max_accuracy_drop={drop}", f"exporter.args.method={method}", LEGACY]
    assert script.main(["-r", str(exported), "-o", str(exported / "new.onnx"), "--int8", "-s", *options]) == 1
    report = read(exported / "export.json")
    assert report["proof"]["passed"]
    assert not report["int8"]["passed"]
    assert (report["int8"]["accuracy_drop"] > 0.1) == (drop == "0.1")
    assert (exported / "new.onnx").exists()
    assert (exported / "new.int8.onnx.failed").exists()
    assert not (exported / "new.int8.onnx").exists()
    error = capsys.readouterr().err
    assert f"{report['metrics']['new.int8.onnx']['accuracy']:.4f}" in error


def test_calibration_sees_training_samples_as_they_are_evaluated(exported, data_dir):
    from parse_config import ConfigParser
    from trainer.judge import Judge

    class Arguments:
        check, device, verbose = False, "cpu", False

    config = ConfigParser(checkpoint.load(exported / checkpoint.BEST)["config"], resume=exported / checkpoint.BEST,
                          continued=True, arguments=Arguments)  # fmt: skip
    chosen = Judge(config).training(40)
    training, _ = digits_by_hand(data_dir, "train")
    pixels = pictures_of(chosen, {"shape": [1, 28, 28], "mean": [0.22], "std": [0.32]})[..., 0]
    held_out = config.init_obj("data_loader").split_validation().dataset.indices
    known = {picture.numpy().tobytes() for number, picture in enumerate(training[:, 0]) if number not in set(held_out)}
    assert {picture.numpy().tobytes() for picture in pixels} <= known
    assert len(pixels) == 40


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_an_old_opset_is_honoured(exported, opset):
    assert script.main(["-r", str(exported), "-o", str(exported / "old.onnx"), "-s", f"exporter.args.opset={opset}"]) == 0
    assert [o.version for o in onnx.load(exported / "old.onnx").opset_import] == [opset]
    assert read(exported / "export.json")["proof"]["passed"]


def test_an_opset_that_cannot_be_kept_is_an_error(exported, capsys, monkeypatch):
    for opset in (99, 7):
        assert script.main(["-r", str(exported), "-s", f"exporter.args.opset={opset}"]) == 2
        assert f"opset: {opset} should be 11 to" in capsys.readouterr().err
    write = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *a, opset_version, **kw: write(*a, opset_version=12, **kw))
    assert script.main(["-r", str(exported), "-o", str(exported / "new.onnx"), "-s", LEGACY]) == 2
    assert "13 cannot be kept, this network comes out as 12" in capsys.readouterr().err
    assert not (exported / "new.onnx").exists()


class NumpyExporter(BaseExporter):
    """A linear network as two arrays."""

    suffix = ".npz"

    def export(self, model, example, path, metadata):
        layer = model.network.layer
        np.savez(path, weight=layer.weight.detach().numpy(), bias=layer.bias.detach().numpy())

    def predict(self, path, batch):
        with np.load(path, allow_pickle=False) as arrays:
            return batch.reshape(len(batch), -1) @ arrays["weight"].T + arrays["bias"]


class OffByABit(NumpyExporter):
    """Forgets the bias."""

    def predict(self, path, batch):
        return super().predict(path, batch) - super().predict(path, batch * 0)


class LinearNetwork(nn.Module):
    """Of a flat input, or of pixels."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.layer = nn.Linear(28 * 28, num_classes)

    def forward(self, x):
        return self.layer(x.flatten(1))


def test_another_format_needs_export_and_predict_only(digits, train, capsys):
    run = train(digits({"arch": {"type": "tests.test_export.LinearNetwork"}, "trainer.epochs": 1}))
    options = ["-r", str(run), "-s"]
    assert script.main([*options, "exporter=tests.test_export.NumpyExporter"]) == 0
    report = read(run / "export.json")
    assert report["proof"]["passed"]
    assert report["metrics"]["model.npz"]["accuracy"] == report["metrics"]["checkpoint"]["accuracy"]
    assert "model.npz" in report["latency"]
    assert script.main([*options, "exporter=tests.test_export.OffByABit"]) == 1
    assert (run / "model.npz.failed").exists()
    capsys.readouterr()
    assert script.main(["-r", str(run), "--int8", "-s", "exporter=tests.test_export.NumpyExporter"]) == 2
    assert "writes no int8" in capsys.readouterr().err
    both = [str(run), str(run / checkpoint.BEST)]
    assert script.main(["--compare", *both, "-s", "exporter=tests.test_export.NumpyExporter"]) == 0
    assert (run / "compare" / "compare.csv").exists()


class Vectors(DigitsDataLoader):
    """The digits without their places."""

    def build_dataset(self, subset, augment):
        pictures = super().build_dataset(subset, augment)
        return torch.utils.data.TensorDataset(pictures.pictures.flatten(1).float() / 255, pictures.targets)


def test_a_network_that_takes_no_pictures(digits, train, capsys):
    run = train(
        digits({"arch": {"type": "tests.test_export.LinearNetwork"}, "data_loader.type": "tests.test_export.Vectors"})
    )
    assert script.main(["-r", str(run), "-s", LEGACY]) == 0
    assert onnxruntime.InferenceSession(run / "model.onnx").get_inputs()[0].shape == ["batch", 784]
    assert metadata(run / "model.onnx")["preprocess"] is None
    assert script.main(["-r", str(run), "-s", LEGACY, "exporter.args.preprocess=true"]) == 2
    assert "preprocess: the network takes no pictures" in capsys.readouterr().err


def test_the_averaged_weights_are_what_is_exported(digits, train, data_dir):
    run = train(digits({"trainer.ema_decay": 0.9}))
    assert script.main(["-r", str(run), "-s", LEGACY]) == 0
    averaged, pixels = LeNet(), (digits_by_hand(data_dir)[0][:5].float() / 255 - 0.22) / 0.32
    averaged.load_state_dict(checkpoint.load(run / checkpoint.BEST)["ema"]["state_dict"])
    [output] = onnxruntime.InferenceSession(run / "model.onnx").run(None, {"input": pixels.numpy()})
    with torch.no_grad():
        assert np.allclose(output, averaged.eval()(pixels), atol=1e-5)
        assert not np.allclose(output, lenet(run)(pixels), atol=1e-3)


def test_check_leaves_nothing_behind(exported, capsys):
    before = {file: file.read_bytes() for file in exported.rglob("*") if file.is_file()}
    assert script.main(["-r", str(exported), "--int8", "--check", "-s", LEGACY]) == 0
    assert "check passed" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in exported.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-r", "{run}/model.onnx"], "is exported already"),
        (["-r", "{run}", "-o", "{run}/model.pt"], "files that end in .onnx"),
        (["-r", "{run}", "-s", "exporter.args.method=best"], "exporter.args.method"),
        (["-r", "{run}", "-s", "exporter.args.soft=true"], 'takes no "soft"; did you mean "softmax"'),
        (["-r", "{run}", "-s", "exporter=LeNet"], 'there is no "LeNet"'),
        ([], "which network?"),
        (["--compare", "{run}/none.onnx"], "none.onnx"),
        (["--compare", "{run}", "{run}"], "named twice"),
    ],
)
def test_mistakes_are_said(exported, capsys, arguments, said):
    assert script.main([argument.format(run=exported) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_what_torch_cannot_export_is_said(exported, capsys, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("\nno way\nand a page of graphs")

    monkeypatch.setattr(torch.onnx, "export", fail)
    before = set(exported.iterdir())
    assert script.main(["-r", str(exported), "-s", LEGACY]) == 1
    assert "torch cannot export LeNet to ONNX: no way\n" in capsys.readouterr().err
    gc.collect()
    assert set(exported.iterdir()) == before


def test_compare_is_a_table_a_csv_and_a_picture(exported, capsys):
    files = [exported, exported / "model.onnx", exported / "model.int8.onnx"]
    assert script.main(["--compare", *map(str, files), "-s", LEGACY]) == 0
    with open(exported / "compare" / "compare.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["run", "model.onnx", "model.int8.onnx"]
    metrics = read(exported / "export.json")["metrics"]
    for row, name in zip(rows, ("checkpoint", "model.onnx"), strict=False):  # other tests make other int8 files
        assert float(row["accuracy"]) == pytest.approx(metrics[name]["accuracy"])
    for row in rows:
        assert row["parameters"] == "21840"
        assert row["samples"] == "144"
        assert float(row["p50_ms"]) <= float(row["p95_ms"])
    assert float(rows[0]["times_the_first"]) == 1
    assert float(rows[2]["megabytes"]) == pytest.approx(files[2].stat().st_size / 1e6)
    out = capsys.readouterr().out
    assert "times_the_first" in out
    picture = xml.etree.ElementTree.parse(exported / "compare" / "compare.svg")
    texts = "".join(picture.getroot().itertext())
    assert "model.int8.onnx" in texts
    assert "ms, one sample" in texts


def test_pixels_come_back_from_what_a_loader_made_of_them():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (7, 3, 11, 5), generator=generator, dtype=torch.uint8)
    wanted = {"shape": [3, 11, 5], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    mean, std = (torch.tensor(wanted[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    data = (pixels.float() / 255 - mean) / std
    assert torch.equal(pictures_of(data, wanted), pixels.permute(0, 2, 3, 1))
    deployed = Deployed(nn.Identity(), wanted, preprocess=True, softmax=False)
    torch.testing.assert_close(deployed(pictures_of(data, wanted)), data)
    for other in (data + 0.01, data * 3):
        with pytest.raises(UserError, match="no pictures in whole steps"):
            pictures_of(other, wanted)
    with pytest.raises(UserError, match="does not say what it subtracts"):
        Deployed(nn.Identity(), wanted | {"mean": None}, preprocess=True, softmax=False)


def export_and_compare(model, size, path, channels=3):
    """Export `model`; compare it with its file for batches of 1 and 5."""
    torch.manual_seed(1)
    model.eval()
    exporter = OnnxExporter()
    deployed = Deployed(model, {"shape": [channels, size, size]}, preprocess=False, softmax=False)
    exporter.export(deployed, torch.randn(2, channels, size, size), path, {})
    run = exporter.load(path)
    for count in (1, 5):
        data = torch.randn(count, channels, size, size)
        with torch.no_grad():
            expected = model(data).numpy()
        assert np.ptp(expected) > 1e-3  # else the comparison would be of nothing
        assert np.abs(run(data.numpy()) - expected).max() <= 1e-4 * np.abs(expected).max()
    assert not path.with_name(f"{path.name}.data").exists()


@pytest.mark.slow
@pytest.mark.parametrize("pruned", [False, True], ids=["whole", "pruned"])
@pytest.mark.parametrize("name", FAMILIES)
def test_one_of_each_family(name, pruned, tmp_path):
    torch.manual_seed(0)
    model = build_network(Settings({"type": name}), CLASSES, [3, FAMILIES[name], FAMILIES[name]])
    nn.init.normal_(model.get_submodule(head_of(model)).weight)  # torchvision's ViT begins with a head of zeros
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of one batch, or what an untrained network gives is next to nothing
    with torch.no_grad():
        model.train()(torch.randn(16 if FAMILIES[name] < 100 else 4, 3, FAMILIES[name], FAMILIES[name]))
    if pruned:
        MagnitudePruner(channel_sparsity=0.5).cut(model.eval(), torch.randn(2, 3, FAMILIES[name], FAMILIES[name]), 1, {})
    export_and_compare(model, FAMILIES[name], tmp_path / "model.onnx")
