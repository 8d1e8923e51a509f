"""Networks that take and give more than one tensor: exported, proven, and tested as files."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import export as script
import test as test_script
from exporter import onnx_file
from utils import checkpoint

TASK = """
from dataclasses import dataclass
import torch
import torch.nn.functional as F
from torch import nn
from base import BaseDataLoader, BaseDataset, BaseTask
from base.base_task import Step
"""
HALVES = """
class Network(nn.Module):
    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.layer, self.head = nn.Linear(28 * 14, 16), nn.Linear(32, num_classes)
    def forward(self, left, right):
        halves = [self.layer(part.flatten(1)).relu() for part in (left, right)]
        return self.head(torch.cat(halves, 1))

class Task(BaseTask):
    def step(self, model, batch):
        images, target = batch
        output = model(images[..., :14], images[..., 14:])
        return Step(self.criterion(output, target), output, target, len(target), images)

class KeywordTask(BaseTask):
    def step(self, model, batch):
        images, target = batch
        output = model(right=images[..., 14:], left=images[..., :14])
        return Step(self.criterion(output, target), output, target, len(target), images)

class NestedNetwork(Network):
    def forward(self, parts, scale=1.0, flip=None):
        return super().forward(parts["left"], parts["more"][0]) * scale

class NestedTask(BaseTask):
    def step(self, model, batch):
        images, target = batch
        parts = {"left": images[..., :14], "more": [images[..., 14:]]}
        output = model(parts, scale=2.0)
        return Step(self.criterion(output, target), output, target, len(target), images)
"""
SEGMENTATION = """
class Network(nn.Module):
    '''Like torchvision's: a score per class and pixel.'''
    def __init__(self):
        super().__init__()
        self.body, self.linear = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 10, 1)
        self.extra = nn.Conv2d(4, 10, 1)
    def forward(self, x):
        features = self.body(x).relu()
        return {"out": self.linear(features), "aux": self.extra(features)}

class Task(BaseTask):
    def step(self, model, batch):
        images = batch[0]
        target = (images[:, 0] > 0).long()
        output = model(images)
        loss = sum(self.criterion(output[key], target) for key in ("out", "aux"))
        return Step(loss, output["out"], target, len(target), images)
"""
FIELDS = """
@dataclass
class Answer:
    linear: torch.Tensor  # torch's exporter calls an inner value like that, too
    features: tuple
    kind: str = "digit"
    nothing: object = None

class Network(nn.Module):
    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.body, self.head = nn.Linear(28 * 28, 16), nn.Linear(16, num_classes)
    def forward(self, x):
        features = self.body(x.flatten(1)).relu()
        return Answer(self.head(features), (features, features.mean(1)))

class Task(BaseTask):
    def step(self, model, batch):
        images, target = batch
        answer = model(images)
        assert answer.kind == "digit" and answer.nothing is None
        loss = self.criterion(answer.linear, target) + 0.01 * answer.features[1].mean()
        return Step(loss, answer.linear, target, len(target), images)
"""
WORDS = """
WORDS = "the line stops when a part is missing and starts again after check of each".split()

class Sentences(BaseDataset):
    '''Sentences of 2 to 11 words; the class is whether "part" is among them.'''
    classes = ["no", "yes"]
    def __init__(self, subset):
        generator = torch.Generator().manual_seed(len(subset))
        self.samples = []
        for _ in range(60):
            length = int(torch.randint(2, 12, (), generator=generator))
            tokens = torch.randint(1, len(WORDS) + 1, (length,), generator=generator)
            self.samples.append((tokens, int((tokens == 1 + WORDS.index("part")).any())))
    def __len__(self):
        return len(self.samples)
    def __getitem__(self, index):
        return self.samples[index]
    def collate(self, samples):
        tokens, labels = zip(*samples)
        padded = nn.utils.rnn.pad_sequence(tokens, batch_first=True)
        return padded, torch.tensor([len(each) for each in tokens]), torch.tensor(labels)

class Loader(BaseDataLoader):
    def build_dataset(self, subset, augment):
        return Sentences(subset)

class Task(BaseTask):
    def step(self, model, batch):
        tokens, lengths, label = batch
        output = model(tokens, lengths=lengths)
        return Step(self.criterion(output, label), output, label, len(label))

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(len(WORDS) + 1, 8, padding_idx=0), nn.Linear(8, 2)
    def present(self, tokens, lengths):
        return torch.arange(tokens.shape[1], device=tokens.device)[None] < lengths[:, None]
    def forward(self, tokens, lengths):
        weights = self.present(tokens, lengths) / lengths[:, None]
        return self.head((self.embed(tokens) * weights[..., None]).sum(1))

class Recurrent(Network):
    def __init__(self):
        super().__init__()
        self.layers = nn.GRU(8, 4, batch_first=True, bidirectional=True)
    def forward(self, tokens, lengths):
        states, _ = self.layers(self.embed(tokens))
        return self.head(states[torch.arange(len(tokens), device=tokens.device), lengths - 1])

class LongShort(Recurrent):
    def __init__(self):
        super().__init__()
        self.layers = nn.LSTM(8, 4, batch_first=True, bidirectional=True)

class Packed(Recurrent):
    def forward(self, tokens, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(tokens), lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.head(torch.cat(list(self.layers(packed)[1]), 1))

class Convolution(Network):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv1d(8, 8, 3, padding=1)
    def forward(self, tokens, lengths):
        return self.head(self.layer(self.embed(tokens).transpose(1, 2)).relu().amax(2))

class Pooled(Convolution):
    def forward(self, tokens, lengths):
        found = self.layer(self.embed(tokens).transpose(1, 2)).relu()
        return self.head(F.max_pool1d(found, 2).amax(2))

class Transformer(Network):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)
    def forward(self, tokens, lengths):
        present = self.present(tokens, lengths)
        states = self.layers(self.embed(tokens), src_key_padding_mask=~present)
        return self.head((states * present[..., None]).sum(1) / lengths[:, None])
"""


def export(run, *arguments):
    return script.main(["-r", str(run), *map(str, arguments)])


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def result(run, file):
    """What test.py says of a checkpoint or file of the run."""
    assert test_script.main(["-r", str(run / file)]) == 0
    folder = run / "test" if file == checkpoint.BEST else run / "test" / file
    return read(folder / "result.json")


@pytest.fixture
def trained(digits, train, own_code):
    """A function that trains a network of some code; returns the run, and the network to call."""

    def make(code, network="Network", **changes):
        module = __import__(own_code("own", TASK + code))
        task = changes.pop("task", "Task")
        config = {"arch": {"type": f"own.{network}"}, "task": {"type": f"own.{task}"}, **changes}
        run = train(digits({"trainer.epochs": 1, "lr_scheduler": None, **config}))
        model = getattr(module, network)()
        model.load_state_dict(checkpoint.load(run / checkpoint.BEST)["state_dict"])
        model.eval().requires_grad_(False)
        return run, model

    return make


@pytest.fixture
def of_sentences(trained):
    def make(network):
        loader = {"type": "own.Loader", "args": {"batch_size": 8, "validation_split": 0.3}}
        return trained(WORDS, network, data_loader=loader, metrics=["accuracy"])

    return make


def run_file(file, **inputs):
    session = onnxruntime.InferenceSession(file)
    names = {entry.name for entry in session.get_inputs()}
    return session.run(None, {k: v.numpy() for k, v in inputs.items() if k in names})


def assert_tested_alike(run):
    """The file gives the metrics that the checkpoint gives."""
    one, two = result(run, checkpoint.BEST), result(run, "model.onnx")
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["accuracy"] == one["accuracy"]
    assert two["speed"]["batch_size"] > 1


NEWEST_AND_OLDER = [pytest.param("Task", "null", marks=pytest.mark.slow), ("KeywordTask", 17)]


@pytest.mark.parametrize(("task", "opset"), NEWEST_AND_OLDER)
def test_two_inputs(trained, task, opset):
    run, network = trained(HALVES, task=task)
    assert export(run, "--int8", "-s", f"exporter.args.opset={opset}", "exporter.args.softmax=true",
                  "exporter.args.max_accuracy_drop=0.2") == 0  # fmt: skip
    left, right = torch.randn(2, 7, 1, 28, 14)
    expected = network(left, right).softmax(1)
    for name, tolerance in (("model.onnx", 1e-6), ("model.int8.onnx", 0.1)):
        [output] = run_file(run / name, left=left, right=right)
        assert np.allclose(output, expected, atol=tolerance)
    session = onnxruntime.InferenceSession(run / "model.onnx")
    assert session.get_outputs()[0].name == "output"
    assert_tested_alike(run)
    assert script.main(["--compare", str(run / "model.onnx"), str(run)]) == 0
    metadata = read(run / "export.json")["metadata"]
    both = ("left", "right")
    assert metadata["signature"]["shapes"] == {name: ["batch", 1, 28, 14] for name in both}
    assert metadata["signature"]["dtypes"] == dict.fromkeys(both, "float32")
    assert metadata["macs"] == 2 * 28 * 14 * 16 + 32 * 10


def test_nested_inputs(trained):
    run, network = trained(HALVES, "NestedNetwork", task="NestedTask")
    assert export(run, "-s", "exporter.args.opset=17") == 0
    left, right = torch.randn(2, 3, 1, 28, 14)
    [output] = run_file(run / "model.onnx", left=left, more_0=right)
    expected = network({"left": left, "more": [right]}, 2.0)
    assert np.allclose(output, expected, atol=1e-5)
    assert_tested_alike(run)


def test_dict_of_outputs(trained, digits, capsys):
    run, network = trained(SEGMENTATION, metrics=[])
    assert export(run, "-s", "exporter.args.opset=17") == 0
    images = torch.randn(3, 1, 28, 28)
    expected = network(images)
    outputs = run_file(run / "model.onnx", input=images)
    for output, key in zip(outputs, ("out", "aux"), strict=True):
        assert np.allclose(output, expected[key], atol=1e-5)
    names = [entry.name for entry in onnxruntime.InferenceSession(run / "model.onnx").get_outputs()]
    assert names == ["out", "aux"]
    one, two = result(run, checkpoint.BEST), result(run, "model.onnx")
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    capsys.readouterr()
    assert export(run, "-s", "exporter.args.softmax=true") == 2
    assert "exporter.args.softmax: the output is not (N, classes)" in capsys.readouterr().err
    quantize = ["--int8", "-s", "exporter.args.opset=17"]
    assert export(run, *quantize) == 0  # by what the training monitors
    report = json.loads((run / "export.json").read_text("utf-8"))
    before, after = (report["metrics"][f"model{kind}.onnx"]["loss"] for kind in ("", ".int8"))
    assert report["int8"]["metric"] == "loss"
    assert report["int8"]["accuracy_drop"] == pytest.approx((after - before) / before)
    assert export(run, *quantize, "trainer.monitor=off") == 2
    assert "trainer.monitor must say" in capsys.readouterr().err


def test_damage_to_a_further_output_fails_the_proof(trained, monkeypatch, capsys):
    from exporter.deployed import Deployed

    run, _ = trained(SEGMENTATION, metrics=[])
    forward = Deployed.forward
    monkeypatch.setattr(
        Deployed, "forward", lambda *a: tuple(x * 1.01**n for n, x in enumerate(forward(*a)))
    )
    assert export(run, "-s", "exporter.args.opset=17") == 1
    assert "outputs differ from the network's" in capsys.readouterr().err


@pytest.mark.parametrize("opset", ["null", 17])
def test_dataclass_of_outputs(trained, opset):
    run, network = trained(FIELDS)
    assert export(run, "-s", f"exporter.args.opset={opset}") == 0
    images = torch.randn(3, 1, 28, 28)
    answer = network(images)
    outputs = run_file(run / "model.onnx", input=images)
    for output, expected in zip(outputs, (answer.linear, *answer.features), strict=True):
        assert np.allclose(output, expected, atol=1e-5)
    assert_tested_alike(run)


@pytest.mark.parametrize(
    "network",
    [
        "Network",
        "Convolution",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("Recurrent", "LongShort", "Transformer")
        ),
    ],
)
def test_sequences_of_different_lengths(of_sentences, network):
    run, model = of_sentences(network)
    assert export(run) == 0
    for lengths in ([4], [1, 9], [2, 17, 5]):
        tokens = torch.randint(1, 16, (len(lengths), max(lengths)))
        for row, length in zip(tokens, lengths, strict=True):
            row[length:] = 0
        lengths = torch.tensor(lengths)
        [output] = run_file(run / "model.onnx", tokens=tokens, lengths=lengths)
        assert np.allclose(output, model(tokens, lengths), atol=1e-5)
    assert_tested_alike(run)
    signature = onnx_file.load(run / "model.onnx")["signature"]
    assert signature["shapes"] == {"tokens": ["batch", "tokens_axis1"], "lengths": ["batch"]}
    assert signature["dtypes"] == {"tokens": "int64", "lengths": "int64"}


def test_what_torch_cannot_export_is_said(of_sentences, capsys):
    run, _ = of_sentences("Packed")
    capsys.readouterr()
    assert export(run) == 1
    error = capsys.readouterr().err
    assert "torch cannot export Packed to ONNX: " in error
    assert "Traceback" not in error
    assert len(error) < 400


def test_fixed_length_is_said_and_the_older_exporter_can_help(of_sentences, capsys):
    run, _ = of_sentences("Pooled")
    capsys.readouterr()
    assert export(run) == 1
    error = capsys.readouterr().err
    assert "inferred a static shape" in error
    assert "exporter.args.opset=17 uses torch's older exporter" in error
    assert export(run, "-s", "exporter.args.opset=17") == 0
    assert_tested_alike(run)


def test_file_of_a_fixed_length_fails_the_proof(of_sentences, capsys):
    run, _ = of_sentences("Transformer")
    capsys.readouterr()
    assert export(run, "-s", "exporter.args.opset=17") == 1
    error = capsys.readouterr().err
    assert "the file does not work with other samples" in error
    assert "Traceback" not in error
    assert not (run / "model.onnx").exists()


def test_mistakes_are_reported(trained, capsys, own_code, tmp_path):
    run, _ = trained(HALVES)
    assert export(run, "-s", "exporter.args.opset=17") == 0
    capsys.readouterr()
    assert export(run, "-s", "exporter.args.preprocess=true") == 2
    assert (
        "preprocess: the network does not take images, but [[1, 28, 14]," in capsys.readouterr().err
    )
    config = read(run / "config.json") | {"task": "SupervisedTask"}
    (tmp_path / "other.json").write_text(json.dumps(config))
    assert (
        test_script.main(["-r", str(run / "model.onnx"), "-c", str(tmp_path / "other.json")]) == 2
    )
    error = capsys.readouterr().err
    assert "model.onnx takes left, right, but the task passes left" in error
    file = onnx.load(run / "model.onnx")
    next(e for e in file.metadata_props if e.key == "signature").value = '{"inputs": []}'
    onnx_file.save(file, run / "model.onnx", onnx_file.entries(file), {})
    assert test_script.main(["-r", str(run / "model.onnx")]) == 2
    assert "its metadata is damaged: signature" in capsys.readouterr().err


def test_file_from_another_program_takes_the_arguments_in_order(trained, tmp_path):
    run, _ = trained(HALVES)
    assert export(run, "-s", "exporter.args.opset=17") == 0
    file = onnx.load(run / "model.onnx")
    del file.metadata_props[:]
    onnx.save(file, run / "foreign.onnx")
    expected = result(run, "model.onnx")
    arguments = ["-r", str(run / "foreign.onnx"), "-c", str(run / "config.json")]
    assert test_script.main(arguments) == 0
    found = read(run / "test" / "foreign.onnx" / "result.json")
    assert found["accuracy"] == expected["accuracy"]
    assert found["loss"] == expected["loss"]
