"""export.py: files compared with the original network, and what happens to files that differ."""

import csv
import gc
import json
import os
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
from data_loader.data_loaders import DigitsDataLoader
from exporter import onnx_file
from exporter.base_exporter import BaseExporter
from exporter.compare import thread_counts
from exporter.deployed import Deployed, denormalize, describe_input
from exporter.evaluator import Evaluation, Evaluator
from exporter.export import export_checkpoint
from exporter.onnx_exporter import OnnxExporter
from exporter.proof import prove
from model.model import LeNet
from parse_config import ConfigParser
from tests.conftest import save_images
from tests.exporter.conftest import build_family, export_and_compare
from tests.model.test_networks import FAMILIES
from utils import checkpoint
from utils.errors import RunError, UserError

LEGACY = "exporter.args.opset=13"  # takes a tenth of the time
HERE = "exporter=tests.exporter.test_export"


def read_digits(data_dir, subset="test"):
    """Pixels uint8 (N, 1, 28, 28), and their classes."""
    samples = DigitsDataLoader(str(data_dir)).for_subset(subset).samples
    return samples.images, samples.targets


def lenet(run):
    model = LeNet()
    model.load_state_dict(checkpoint.load(run / checkpoint.BEST)["state_dict"])
    return model.eval()


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def metadata(file):
    return {entry.key: json.loads(entry.value) for entry in onnx.load(file).metadata_props}


def export(run, *arguments):
    """Call export.py on a run; return its exit code."""
    return script.main(["-r", str(run), *map(str, arguments)])


@pytest.mark.parametrize("count", [1, 5, 64])
def test_file_maps_pixels_to_the_networks_probabilities(exported_run, data_dir, count):
    session = onnxruntime.InferenceSession(exported_run / "model.onnx")
    pixels = read_digits(data_dir)[0][:count]
    [output] = session.run(["output"], {"input": pixels.permute(0, 2, 3, 1).numpy()})
    with torch.no_grad():
        expected = lenet(exported_run)((pixels.float() / 255 - 0.22) / 0.32).exp().numpy()
    assert np.allclose(output, expected, atol=1e-6)
    assert session.get_inputs()[0].shape[1:] == [28, 28, 1]
    assert not list(exported_run.glob("*.data"))
    assert not list(exported_run.glob(".*"))


def test_metadata_describes_the_network(exported_run):
    state = checkpoint.load(exported_run / checkpoint.BEST)
    described = metadata(exported_run / "model.onnx")
    assert described["name"] == "Digits"
    assert described["classes"] == [str(digit) for digit in range(10)]
    assert described["arch"] == "LeNet"
    for key in ("input", "epoch", "versions"):
        assert described[key] == state[key]
    config = dict(described["config"])
    arguments = {"preprocess": True, "softmax": True, "max_accuracy_drop": 0.1}
    assert config.pop("exporter")["args"] == arguments
    assert config == state["config"]
    assert described["preprocess"]["resize"] == [28, 28]
    assert described["preprocess"]["colour"] == "grey"
    assert described["parameters"] == sum(p.numel() for p in LeNet().parameters())
    convolutions = 24 * 24 * 25 * 10 + 8 * 8 * 25 * 10 * 20
    assert described["macs"] == convolutions + 320 * 50 + 50 * 10
    int8 = {"int8": {"method": "minmax", "samples": 128}}
    quantized = metadata(exported_run / "model.int8.onnx")
    assert quantized.pop("digest") != described.pop("digest")
    judged = read(exported_run / "export.json")["int8"]
    assert quantized.pop("judged").items() <= judged.items()
    assert quantized == described | int8


def test_report_has_the_proof_and_the_metrics_of_both(exported):
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
    files = {"model.onnx", "model.int8.onnx"}
    assert set(report["latency"]) == {"threads", "batch_size", "rounds"} | files
    assert report["bytes"]["model.int8.onnx"] == (exported / "model.int8.onnx").stat().st_size


def test_int8_file_has_int8_weights_per_channel_and_the_same_accuracy(exported_run, data_dir):
    model = onnx.load(exported_run / "model.int8.onnx")
    weights = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    convolutions = [w for w in weights.values() if w.dtype == np.int8 and w.ndim == 4]
    assert sorted(w.shape for w in convolutions) == [(10, 1, 5, 5), (20, 10, 5, 5)]
    scales = {
        len(np.atleast_1d(s)) for n, s in weights.items() if n.endswith("_scale") and s.size > 1
    }
    assert {10, 20} <= scales
    zero_points = [w for n, w in weights.items() if n.endswith("_zero_point")]
    assert any(w.dtype == np.uint8 for w in zero_points)
    pixels, targets = read_digits(data_dir)
    inputs = {"input": pixels.permute(0, 2, 3, 1).numpy()}
    outputs = [
        onnxruntime.InferenceSession(exported_run / name).run(None, inputs)[0]
        for name in ("model.onnx", "model.int8.onnx")
    ]
    accuracies = [(output.argmax(1) == targets.numpy()).mean() for output in outputs]
    assert 0 < np.abs(outputs[0] - outputs[1]).max() < 0.2
    assert abs(accuracies[0] - accuracies[1]) < 0.03
    assert len(np.unique(outputs[1])) > 1000  # probabilities, not one of 256 steps


class ScalingExporter(OnnxExporter):
    """Damages what it writes.

    Args:
        factor: one layer's weights are multiplied by it
    """

    def __init__(self, factor: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def export(self, model, example, path, metadata):
        super().export(model, example, path, metadata)
        file = onnx.load(path)
        tensor = next(i for i in file.graph.initializer if i.name.endswith("conv2.weight"))
        scaled = numpy_helper.to_array(tensor) * np.float32(self.factor)
        tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
        onnx_file.save(file, path, onnx_file.entries(file), {})


def test_weights_that_differ_by_one_percent_fail(exported, capsys):
    before = (exported / "model.onnx").read_bytes()
    damaged = ["--int8", "-s", "exporter.type=tests.exporter.test_export.ScalingExporter", LEGACY]
    assert export(exported, *damaged, "exporter.args.factor=1.01") == 1
    report = read(exported / "export.json")
    assert not report["passed"]
    assert report["proof"]["relative_difference"] > 1e-4
    assert "outputs differ from the network's" in capsys.readouterr().err
    assert (exported / "model.onnx.failed").exists()
    assert (exported / "model.onnx").read_bytes() == before  # an earlier file that was proven stays
    assert "int8" not in report
    assert export(exported, *damaged, "exporter.args.factor=1.0") == 0


def test_proof_of_zeros_or_nan_fails():
    def evaluation(*outputs, classes=True):
        probabilities = outputs[0] if classes else None
        tensors = {(number,): [output] for number, output in enumerate(outputs)}
        return Evaluation({}, len(outputs[0]), tensors, probabilities)

    def passes(one, other):
        return prove(evaluation(*one), evaluation(*other))["passed"]

    output = np.random.default_rng(0).normal(size=(9, 4))
    assert passes([output], [output + 1e-6])
    assert not passes([output], [output + 1e-2])
    assert not passes([output * 0], [output * 0])
    assert not passes([output], [output * np.nan])
    assert not passes([output, output], [output, output + 1e-2])  # each output counts
    assert not passes([output, output], [output, output * np.nan])
    assert passes([output, output * 0], [output, output * 0])
    assert not passes([output, output * 0], [output, output * 0 + 1e-9])
    masked = np.where(output > 0, output, -np.inf)
    assert passes([output, masked], [output, masked])
    assert not passes([output, masked], [output, output])
    with pytest.raises(RunError, match=r"gives an output of \[9, 4\], the file one of \[9, 3\]"):
        passes([output], [output[:, :3]])
    tie = np.array([[1.0, 1.0 + 1e-7]])
    assert not passes([tie], [tie[:, ::-1]])  # within rounding, but another class
    without = evaluation(tie, classes=False)
    assert prove(without, without)["agreement"] is None


def test_batches_in_sizes_hold_the_same_samples(exported):
    evaluator, network = evaluator_of(exported), Noting()
    evaluation = evaluator(network, (1, 5))
    sizes = [len(batch) for batch in network.batches]
    assert sizes == [1, 5] * 24
    assert evaluation.samples == 144
    expected = torch.cat([data for data, _ in evaluator.loader])
    assert torch.equal(torch.cat(network.batches), expected)


class Noting(LeNet):
    """Keeps its inputs."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, x):
        self.batches.append(x)
        return super().forward(x)


def evaluator_of(run):
    best = run / checkpoint.BEST
    config = ConfigParser(checkpoint.load(best)["config"], resume=best, continued=True)
    return Evaluator(config, "cpu")


@pytest.mark.parametrize(("drop", "method"), [("-1", "entropy"), ("0.1", "percentile")])
def test_int8_that_loses_too_much_accuracy_fails(exported, capsys, monkeypatch, drop, method):
    if drop == "0.1":  # ranges of a calibration that never saw a digit
        monkeypatch.setattr(
            "exporter.evaluator.Evaluator.training_calls",
            lambda *arguments: [((torch.full((1, 1, 28, 28), 0.01),), {})] * 16,
        )
    options = [f"exporter.args.max_accuracy_drop={drop}", f"exporter.args.method={method}", LEGACY]
    assert export(exported, "-o", exported / "new.onnx", "--int8", "-s", *options) == 1
    report = read(exported / "export.json")
    assert report["proof"]["passed"]
    assert not report["int8"]["passed"]
    assert (report["int8"]["accuracy_drop"] > 0.1) == (drop == "0.1")
    assert (exported / "new.onnx").exists()
    assert (exported / "new.int8.onnx.failed").exists()
    assert not (exported / "new.int8.onnx").exists()
    error = capsys.readouterr().err
    assert f"{report['metrics']['new.int8.onnx']['accuracy']:.4f}" in error


def test_calibration_uses_training_samples_without_augmentation(exported, data_dir):
    evaluator = evaluator_of(exported)
    config = evaluator.config
    calls = evaluator.training_calls(40)
    chosen = torch.cat([args[0] for args, _ in calls])
    training, _ = read_digits(data_dir, "train")
    pixels = denormalize(chosen, {"shape": [1, 28, 28], "mean": [0.22], "std": [0.32]})[..., 0]
    held_out = set(config.init_obj("data_loader").split_validation().dataset.indices)
    known = {
        image.numpy().tobytes()
        for number, image in enumerate(training[:, 0])
        if number not in held_out
    }
    assert {image.numpy().tobytes() for image in pixels} <= known
    assert len(pixels) == 40


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_old_opset_is_used(exported, opset):
    file = exported / "old.onnx"
    assert export(exported, "-o", file, "-s", f"exporter.args.opset={opset}") == 0
    assert [entry.version for entry in onnx.load(file).opset_import] == [opset]
    assert read(exported / "export.json")["proof"]["passed"]


def test_impossible_opset_is_an_error(exported, capsys, monkeypatch):
    for opset in (99, 7):
        assert export(exported, "-s", f"exporter.args.opset={opset}") == 2
        assert f"opset: {opset} should be 11 to" in capsys.readouterr().err
    write = torch.onnx.export
    monkeypatch.setattr(
        torch.onnx, "export", lambda *a, opset_version, **kw: write(*a, opset_version=12, **kw)
    )
    assert export(exported, "-o", exported / "new.onnx", "-s", LEGACY) == 2
    error = capsys.readouterr().err
    assert "13 does not work for this network, 12 does" in error
    assert not (exported / "new.onnx").exists()


class NumpyExporter(BaseExporter):
    """A linear network as two arrays."""

    suffix = ".npz"

    def export(self, model, example, path, metadata):
        layer = model.network.layer
        np.savez(path, weight=layer.weight.detach().numpy(), bias=layer.bias.detach().numpy())

    def predict(self, path, batch):
        with np.load(path, allow_pickle=False) as arrays:
            pixels = batch["input"].reshape(len(batch["input"]), -1)
            return {"output": pixels @ arrays["weight"].T + arrays["bias"]}


class NoBiasExporter(NumpyExporter):
    """Forgets the bias."""

    def predict(self, path, batch):
        zero = super().predict(path, {"input": batch["input"] * 0})
        return {"output": super().predict(path, batch)["output"] - zero["output"]}


class LinearNetwork(nn.Module):
    """Of a flat input, or of pixels."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.layer = nn.Linear(28 * 28, num_classes)

    def forward(self, x):
        return self.layer(x.flatten(1))


LINEAR = {"type": "tests.exporter.test_export.LinearNetwork"}


def test_another_format_needs_only_export_and_predict(digits, train, capsys):
    run = train(digits({"arch": LINEAR, "trainer.epochs": 1}))
    assert export(run, "-s", f"{HERE}.NumpyExporter") == 0
    report = read(run / "export.json")
    assert report["proof"]["passed"]
    assert report["metrics"]["model.npz"]["accuracy"] == report["metrics"]["checkpoint"]["accuracy"]
    assert "model.npz" in report["latency"]
    assert export(run, "-s", f"{HERE}.NoBiasExporter") == 1
    assert (run / "model.npz.failed").exists()
    capsys.readouterr()
    assert export(run, "--int8", "-s", f"{HERE}.NumpyExporter") == 2
    assert "does not support int8" in capsys.readouterr().err
    both = [str(run), str(run / checkpoint.BEST)]
    assert script.main(["--compare", *both, "-s", f"{HERE}.NumpyExporter"]) == 0
    assert (run / "compare" / "compare.csv").exists()


class VectorLoader(DigitsDataLoader):
    """The digits as flat vectors."""

    def build_dataset(self, subset, augment):
        samples = super().build_dataset(subset, augment)
        vectors = samples.images.flatten(1).float() / 255
        return torch.utils.data.TensorDataset(vectors, samples.targets)


def test_network_without_image_input_is_exported_but_not_preprocessed(digits, train, capsys):
    loader = "tests.exporter.test_export.VectorLoader"
    run = train(digits({"arch": LINEAR, "data_loader.type": loader}))
    assert export(run, "-s", LEGACY) == 0
    assert onnxruntime.InferenceSession(run / "model.onnx").get_inputs()[0].shape == ["batch", 784]
    assert metadata(run / "model.onnx")["preprocess"] is None
    assert export(run, "-s", LEGACY, "exporter.args.preprocess=true") == 2
    assert "preprocess: the network does not take images" in capsys.readouterr().err


def test_averaged_weights_are_exported(digits, train, data_dir):
    run = train(digits({"trainer.ema_decay": 0.9}))
    assert export(run, "-s", LEGACY) == 0
    averaged, pixels = LeNet(), (read_digits(data_dir)[0][:5].float() / 255 - 0.22) / 0.32
    averaged.load_state_dict(checkpoint.load(run / checkpoint.BEST)["ema"]["state_dict"])
    [output] = onnxruntime.InferenceSession(run / "model.onnx").run(None, {"input": pixels.numpy()})
    with torch.no_grad():
        assert np.allclose(output, averaged.eval()(pixels), atol=1e-5)
        assert not np.allclose(output, lenet(run)(pixels), atol=1e-3)


def test_checkpoint_of_a_run_in_progress_is_exported_and_proven(exported, tmp_path):
    best = exported / checkpoint.BEST
    config = checkpoint.load(best)["config"]
    parser = ConfigParser(config | {"exporter": {"type": "OnnxExporter", "args": {"opset": 13}}})
    path = tmp_path / "step.1"
    assert export_checkpoint(parser, "cpu", best, path) == tmp_path / "step.1.onnx"
    x = torch.randn(3, 1, 28, 28)
    [output] = onnxruntime.InferenceSession(f"{path}.onnx").run(None, {"input": x.numpy()})
    with torch.no_grad():
        assert np.allclose(output, lenet(exported)(x), atol=1e-5)
    damaging = {"type": "tests.exporter.test_export.ScalingExporter", "args": {"factor": 1.01}}
    damaging["args"]["opset"] = 13
    with pytest.raises(RunError, match="outputs differ"):
        export_checkpoint(ConfigParser(config | {"exporter": damaging}), "cpu", best, path)
    assert path.with_name("step.1.onnx.failed").exists()


def test_names_of_classes_in_shift_jis_are_exported(image_config, train, tmp_path):
    for subset in ("train", "val"):
        save_images(
            tmp_path / "parts" / subset, {os.fsdecode("不良".encode("cp932")): 4, "良品": 6}
        )
    run = train(image_config(tmp_path / "parts"), "--epochs", 1)
    assert export(run, "-s", LEGACY) == 0
    assert metadata(run / "model.onnx")["classes"] == ["不良", "良品"]


@pytest.mark.parametrize(
    ("scaled", "words"),
    [
        (None, None),
        ("file", "file"),
        ([0.0, 4095.0], "values clipped to 0..4095, then 0 is 0, 4095 is 255, and rounded"),
        ([-1.5, 7.25], "values clipped to -1.5..7.25, then -1.5 is 0, 7.25 is 255, and rounded"),
    ],
)
def test_metadata_says_what_more_than_8_bits_are_scaled_from(scaled, words):
    about = describe_input({"shape": [1, 8, 8], "range": scaled}, [], preprocess=True)
    assert about["more than 8 bits"] == words
    assert describe_input({"shape": [1, 8, 8]}, [], preprocess=True)["more than 8 bits"] is None


def test_check_leaves_nothing_behind(exported, capsys):
    before = {file: file.read_bytes() for file in exported.rglob("*") if file.is_file()}
    assert export(exported, "--int8", "--check", "-s", LEGACY) == 0
    assert "check passed" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in exported.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-r", "{run}/model.onnx"], "is exported already"),
        (["-r", "{run}", "-o", "{run}/model.pt"], "files that end in .onnx"),
        (["-r", "{run}", "-s", "exporter.args.method=best"], "exporter.args.method"),
        (["-r", "{run}", "-s", "exporter.args.soft=1"], 'takes no "soft"; did you mean "softmax"'),
        (["-r", "{run}", "-s", "exporter=LeNet"], 'there is no "LeNet"'),
        ([], "which network?"),
        (["--compare", "{run}/none.onnx"], "none.onnx"),
        (["--compare", "{run}", "{run}"], "named twice"),
    ],
)
def test_mistakes_are_reported(exported, capsys, arguments, message):
    assert script.main([argument.format(run=exported) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_config_without_a_loss_is_refused(exported, digits, tmp_path, capsys):
    config = digits({"loss": None}, task="SupervisedTask")
    (tmp_path / "no_loss.json").write_text(json.dumps(config))
    assert export(exported, "-c", tmp_path / "no_loss.json", "-s", LEGACY) == 2
    assert "loss: the task needs one" in capsys.readouterr().err


def test_failure_of_torchs_exporter_is_reported(exported, capsys, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("\nno way\nand a page of graphs")

    monkeypatch.setattr(torch.onnx, "export", fail)
    before = set(exported.iterdir())
    assert export(exported, "-s", LEGACY) == 1
    assert "torch cannot export LeNet to ONNX: no way\n" in capsys.readouterr().err
    gc.collect()
    assert set(exported.iterdir()) == before


@pytest.mark.charts
def test_comparison_is_a_table_a_csv_and_a_chart(exported, capsys):
    files = [exported, exported / "model.onnx", exported / "model.int8.onnx"]
    assert script.main(["--compare", *map(str, files), "-s", LEGACY]) == 0
    with open(exported / "compare" / "compare.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["run", "model.onnx", "model.int8.onnx"]
    metrics = read(exported / "export.json")["metrics"]
    # other tests write other int8 files
    for row, name in zip(rows, ("checkpoint", "model.onnx"), strict=False):
        assert float(row["accuracy"]) == pytest.approx(metrics[name]["accuracy"])
    for row in rows:
        assert row["parameters"] == "21840"
        assert row["samples"] == "144"
        assert float(row["p50_ms"]) <= float(row["p95_ms"])
        assert float(row["start_ms"]) > 0
        assert 0 < float(row["memory_mb"]) < 500
        assert row["from_file_ms"] == ""  # the digits are no files
    with open(exported / "compare" / "latency.csv", encoding="utf-8-sig", newline="") as file:
        threads = [(row["file"], int(row["threads"])) for row in csv.DictReader(file)]
    assert threads == [(row["file"], n) for n in thread_counts() for row in rows]
    assert float(rows[0]["times_the_first"]) == 1
    assert float(rows[2]["megabytes"]) == pytest.approx(files[2].stat().st_size / 1e6)
    output = capsys.readouterr().out
    assert "times_the_first" in output
    chart = xml.etree.ElementTree.parse(exported / "compare" / "compare.svg")
    texts = "".join(chart.getroot().itertext())
    assert "model.int8.onnx" in texts
    assert "ms, one sample" in texts


def test_denormalize_restores_the_loaders_pixels():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (7, 3, 11, 5), generator=generator, dtype=torch.uint8)
    input_spec = {"shape": [3, 11, 5], "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    mean, std = (torch.tensor(input_spec[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    data = (pixels.float() / 255 - mean) / std
    assert torch.equal(denormalize(data, input_spec), pixels.permute(0, 2, 3, 1))
    call = (data,), {}
    deployed = Deployed(nn.Identity(), call, input_spec, preprocess=True, softmax=False)
    torch.testing.assert_close(deployed(denormalize(data, input_spec)), data)
    for other in (data + 0.01, data * 3):
        with pytest.raises(UserError, match="not normalized images"):
            denormalize(other, input_spec)
    unknown = input_spec | {"mean": None}
    with pytest.raises(UserError, match="does not give mean and std"):
        Deployed(nn.Identity(), call, unknown, preprocess=True, softmax=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_network_of_each_family_equals_its_file(name, tmp_path):
    export_and_compare(build_family(name), FAMILIES[name], tmp_path / "model.onnx")


def test_contract_can_be_imported_from_base_too():
    import base
    from exporter.base_exporter import BaseExporter

    assert base.BaseExporter is BaseExporter
    with pytest.raises(AttributeError, match="BaseNothing"):
        _ = base.BaseNothing
