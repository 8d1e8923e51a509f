"""The output of test.py: scikit-learn's numbers, a self-contained page, tables, images of mistakes,
a threshold."""

import base64
import csv
import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch.overrides import TorchFunctionMode
from torchmetrics.classification import MulticlassCalibrationError

import test as script
from base.base_task import Step
from logger.recorder import next_commands
from model.model import LeNet
from parse_config import ConfigParser
from tester.predictions import Predictions, is_classification
from tester.report import write_images
from tests.conftest import assert_same
from utils import checkpoint

NAMES = list("0123456789")


def collected(targets, probabilities, names=None):
    predictions = Predictions(names)
    targets, probabilities = torch.tensor(targets), torch.tensor(probabilities, dtype=torch.float64)
    for part in torch.arange(len(targets)).split(7):
        images, outputs = torch.rand(len(part), 1, 4, 4), probabilities[part].log()
        predictions.add(Step(None, outputs, targets[part], len(part), images))
    return predictions


class Sources(html.parser.HTMLParser):
    """Everything a page would fetch."""

    def __init__(self):
        super().__init__()
        self.urls, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.urls += [
            value for key, value in attributes if key in ("src", "href", "data", "srcset")
        ]


@pytest.fixture
def tested(digits, train):
    """A function that trains a little, tests, and gives the run's folder."""

    def run(*arguments, **changes):
        folder = train(digits({"trainer.epochs": 2, **changes}))
        assert script.main(["-r", str(folder), *arguments]) == 0
        return folder

    return run


def network_outputs(run, subset="test"):
    state = checkpoint.load(run / checkpoint.BEST)
    model = LeNet()
    model.load_state_dict(state["state_dict"])
    loader = ConfigParser(state["config"]).init_obj("data_loader").for_subset(subset)
    with torch.no_grad():
        parts = [(model.eval()(data).exp(), data, target) for data, target in loader]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


@pytest.mark.charts
def test_page_tables_and_wrong_images(tested):
    run = tested("-s", "inspection={target: '8', max_escape: 0.1}")
    probability, data, target = network_outputs(run)
    threshold = checkpoint.load(run / checkpoint.BEST)["inspection"]["threshold"]
    others = probability.clone()
    others[:, 8] = 0
    predicted = torch.where(probability[:, 8] >= threshold, 8, others.argmax(1))
    result = json.loads((run / "test" / "result.json").read_text(encoding="utf-8"))
    columns = precision_recall_fscore_support(target, predicted, zero_division=0)
    for key, column in zip(("precision", "recall", "f1", "support"), columns, strict=True):
        assert [result["per_class"][name][key] for name in NAMES] == pytest.approx(column.tolist())

    with open(run / "test" / "predictions.csv", encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file)
    columns = ["sample", "true", "predicted", *(f"p({name})" for name in NAMES)]
    assert header == [*columns, "confidence", "distance"]
    assert [int(row[1]) for row in rows] == target.tolist()
    assert [int(row[2]) for row in rows] == predicted.tolist()
    assert np.allclose(np.array([row[3:13] for row in rows], dtype=float), probability, atol=1e-5)
    assert [row[0] for row in rows] == [str(n) for n in range(359)]

    wrong = (predicted != target).nonzero().flatten()
    expected = {f"{target[i]}_to_{predicted[i]}_{i}.jpg" for i in wrong}
    assert {p.name for p in (run / "test" / "wrong_images").iterdir()} == expected
    i = wrong[0]
    with Image.open(
        run / "test" / "wrong_images" / f"{target[i]}_to_{predicted[i]}_{i}.jpg"
    ) as image:
        pixels = (data[i, 0] * 0.32 + 0.22).numpy() * 255
        assert np.abs(np.array(image) - pixels).mean() < 3

    page = (run / "test" / "report.html").read_text(encoding="utf-8")
    sources = Sources()
    sources.feed(page)
    assert "script" not in sources.tags
    assert sources.urls
    assert all(source.startswith("data:") for source in sources.urls)
    assert not re.search(r"https?://|url\(|@import", page)
    for text in (
        "Inspection: 8",
        "Confusion matrix",
        "model_best.pth",
        f"{result['accuracy']:.4f}",
        "arXiv:1911.00068",
    ):
        assert text in page
    charts = [base64.b64decode(s.partition(",")[2]).decode() for s in sources.urls if "svg" in s]
    assert any("predicted class" in chart and "true class" in chart for chart in charts)
    assert (
        page.count('alt="heat map for')
        == page.count('alt="what the network saw"')
        >= min(24, len(wrong))
    )


def test_second_test_overwrites_no_wrong_images(tested):
    run = tested()
    before = {p.name: p.read_bytes() for p in (run / "test" / "wrong_images").iterdir()}
    assert script.main(["-r", str(run)]) == 0
    assert not (run / "test" / "wrong_images-2").exists()  # exactly the same images
    assert script.main(["-r", str(run / "checkpoint-epoch1.pth")]) == 0
    assert {p.name: p.read_bytes() for p in (run / "test" / "wrong_images").iterdir()} == before
    assert any((run / "test" / "wrong_images-2").iterdir())


def test_threshold_is_chosen_on_validation_data_and_stored(tested):
    run = tested("-s", "inspection={target: '8', max_escape: 0.1}")
    file = run / checkpoint.BEST
    probability, _, target = network_outputs(run, "val")
    of_target = np.sort(probability[target == 8, 8].numpy())
    caught = of_target[int(len(of_target) * 0.1)]
    below = probability[:, 8][probability[:, 8] < caught - 1e-6].max().item()
    stored = checkpoint.load(file)["inspection"]
    assert stored["target"] == "8"
    assert stored["max_escape"] == 0.1
    assert below < stored["threshold"] < caught
    assert stored["validation"]["missed"] == int(len(of_target) * 0.1)
    assert stored["validation"]["targets"] == len(of_target)

    probability, _, target = network_outputs(run)
    result = json.loads((run / "test" / "result.json").read_text(encoding="utf-8"))["inspection"]
    for key, called in (
        ("at_threshold", probability[:, 8] >= stored["threshold"]),
        ("at_likeliest", probability.argmax(1) == 8),
    ):
        (good, overkill), (escaped, caught) = confusion_matrix(target == 8, called)
        assert result[key]["escape"] == pytest.approx(escaped / (escaped + caught))
        assert result[key]["overkill"] == pytest.approx(overkill / (good + overkill))
        assert result[key]["missed"] == escaped
        interval = binomtest(int(escaped), int(escaped + caught)).proportion_ci(0.9, "exact")
        assert result[key]["escape_bound"] == pytest.approx(interval.high)

    # stored: the validation data is not read again, and testing does not make a run the newest
    state, modified = checkpoint.load(file), file.stat().st_mtime_ns
    checkpoint.save(state | {"inspection": stored | {"threshold": 0.123}}, file)
    assert script.main(["-r", str(run)]) == 0
    assert (
        json.loads((run / "test" / "result.json").read_text())["inspection"]["threshold"] == 0.123
    )
    stamped = file.stat().st_mtime_ns
    assert script.main(["-r", str(run), "-s", "inspection={target: '3'}"]) == 0
    assert file.stat().st_mtime_ns == pytest.approx(stamped, abs=1e6)
    assert stamped >= modified
    again = checkpoint.load(file)
    assert again["inspection"]["target"] == "3"
    assert_same(again | {"inspection": None}, state | {"inspection": None})


def test_a_person_looks_at_what_is_between_two_thresholds(tested):
    run = tested("-s", "inspection={target: '8', max_escape: 0, max_overkill: 0.02}")
    probability, _, target = network_outputs(run, "val")
    probability, is_target = probability[:, 8].numpy(), (target == 8).numpy()
    stored = checkpoint.load(run / checkpoint.BEST)["inspection"]
    low, high = stored["threshold"], stored["sure_threshold"]
    assert low <= probability[is_target].min()
    assert low < high  # else this network is too good to ask anybody
    assert (probability[~is_target] >= high).sum() == int(0.02 * (~is_target).sum())
    result = json.loads((run / "test" / "result.json").read_text())["inspection"]
    probability, _, target = network_outputs(run)
    with open(run / "test" / "predictions.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    decisions = np.array([row["decision"] for row in rows])
    p, is_target = probability[:, 8].numpy(), (target == 8).numpy()
    assert ((decisions == "unsure") == ((p >= low) & (p < high))).all()
    assert ((decisions == "8") == (p >= high)).all()
    data = result["at_threshold"]
    assert data["unsure"] == (decisions == "unsure").sum()
    assert data["missed"] == (is_target & ~np.isin(decisions, ["8", "unsure"])).sum()
    assert data["false"] == (~is_target & (decisions == "8")).sum()
    interval = binomtest(data["unsure"], len(decisions)).proportion_ci(0.9, "exact")
    assert data["unsure_bound"] == pytest.approx(interval.high)
    assert "a person decides" in (run / "test" / "report.html").read_text(encoding="utf-8")


def test_confidence_is_calibrated_on_the_validation_data(tested):
    run = tested("-s", "inspection={target: '8'}")
    temperature = checkpoint.load(run / checkpoint.BEST)["inspection"]["temperature"]
    probability, _, target = network_outputs(run, "val")

    def loss(value):
        return torch.nn.functional.cross_entropy(probability.log() / value, target)

    assert loss(temperature) <= min(map(loss, np.geomspace(0.25, 20, 200))) + 1e-6
    probability, _, target = network_outputs(run)
    result = json.loads((run / "test" / "result.json").read_text())["inspection"]
    error = MulticlassCalibrationError(10, n_bins=15, norm="l1")
    softened = (probability.log() / temperature).softmax(1)
    for name, values in (("before", probability), ("calibrated", softened)):
        expected = float(error(values, target))
        assert result["calibration_error"][name] == pytest.approx(expected, abs=1e-4)
    with open(run / "test" / "predictions.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = softened[range(len(rows)), [int(row["predicted"]) for row in rows]]
    assert np.allclose([float(row["confidence"]) for row in rows], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("section", "messages"),
    [
        ({"target": "NG"}, ['inspection.target: "NG" is not one of the classes 0, 1, 2']),
        ({"taget": "8"}, ["inspection.target: missing", "inspection.taget: unknown key"]),
        ({"target": "8", "max_escape": 1.5}, ["inspection.max_escape: 1.5 should be less than 1"]),
    ],
)
def test_errors_in_the_inspection_section(digits, train, capsys, section, messages):
    run = train(digits({"trainer.epochs": 1}))
    assert script.main(["-r", str(run), "-s", f"inspection={json.dumps(section)}"]) == 2
    error = capsys.readouterr().err
    assert all(message in error for message in messages)


def test_inspection_needs_validation_data(digits, train, capsys):
    config = digits(
        {
            "data_loader.args.validation_split": 0,
            "trainer.monitor": "min loss",
            "inspection": {"target": "8"},
        }
    )
    assert script.main(["-r", str(train(config))]) == 2
    assert "no validation data" in capsys.readouterr().err


def test_scores_of_missing_classes():
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(4), 50)
    probabilities[:, 2] = 0  # never predicted
    targets = rng.integers(0, 3, 50)  # 3 never occurs
    predictions = collected(targets, probabilities, ["a", "b", "c", "d"])
    predicted = probabilities.argmax(1)
    assert np.array_equal(
        predictions.confusion(), confusion_matrix(targets, predicted, labels=range(4))
    )
    columns = precision_recall_fscore_support(targets, predicted, labels=range(4), zero_division=0)
    for key, column in zip(("precision", "recall", "f1", "support"), columns, strict=True):
        assert [row[key] for row in predictions.per_class().values()] == pytest.approx(
            column.tolist()
        )


def test_suspects_are_the_labels_that_were_changed():
    rng = np.random.default_rng(2)
    true = rng.integers(0, 3, 300)
    probabilities = np.full((300, 3), 0.02)
    probabilities[np.arange(300), true] = 0.96 - rng.random(300) * 0.1
    probabilities /= probabilities.sum(1, keepdims=True)
    labels = true.copy()
    changed = rng.choice(300, 12, replace=False)
    labels[changed] = (true[changed] + 1) % 3
    assert collected(true, probabilities).suspects() == []
    suspects = collected(labels, probabilities).suspects()
    average = [probabilities[labels == j, j].mean() for j in range(3)]
    assert set(suspects) == {
        int(i) for i in changed if probabilities[i, true[i]] >= average[true[i]]
    }
    assert len(suspects) >= 10


def test_images_of_the_most_confident_mistakes_are_kept(monkeypatch):
    monkeypatch.setattr("tester.predictions.KEPT", 5)
    rng = np.random.default_rng(3)
    probabilities, targets = rng.dirichlet(np.ones(3), 40), rng.integers(0, 3, 40)
    wrong = [i for i in range(40) if probabilities[i].argmax() != targets[i]]
    assert (
        list(collected(targets, probabilities).mistakes)
        == sorted(wrong, key=lambda i: -probabilities[i].max())[:5]
    )


def test_only_images_of_mistakes_are_copied_from_the_device():
    copied = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function in (torch.Tensor.cpu, torch.Tensor.to, torch.Tensor.numpy):
                copied.append(tuple(args[0].shape))
            return function(*args, **(kwargs or {}))

    predictions, output = Predictions(["a", "b"]), torch.tensor([[5.0, 0.0]] * 7)
    target = torch.tensor([0, 0, 1, 0, 0, 1, 0])
    with Watch():
        predictions.add(Step(None, output, target, 7, torch.rand(7, 1, 6, 6)))
    assert predictions.mistakes == [2, 5]
    assert [shape for shape in copied if len(shape) == 4] == [(2, 1, 6, 6)]


def test_what_is_trained_in_16_bits_is_tested_in_32(tested):
    """As exported files and single predictions compute: a threshold fits all."""
    run = tested("-s", "inspection={target: '8', max_escape: 0.1}", engine={"precision": "bf16"})
    probability, _, _ = network_outputs(run)
    with open(run / "test" / "predictions.csv", encoding="utf-8-sig", newline="") as file:
        written = [float(row["p(8)"]) for row in csv.DictReader(file)]
    assert written == pytest.approx(probability[:, 8].tolist(), abs=1e-5)


def test_what_counts_as_classification():
    assert is_classification(torch.tensor([0, 1]), torch.rand(2, 2))
    for target, output in (
        (torch.rand(2), torch.rand(2, 2)),
        (torch.tensor([0, 5]), torch.rand(2, 2)),
        (torch.tensor([[0, 1]]), torch.rand(1, 2)),
        (torch.tensor([0, 1]), torch.rand(2, 2, 8, 8)),
    ):
        assert not is_classification(target, output)


def test_nothing_is_overwritten(tmp_path):
    one, two = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    first = write_images(tmp_path / "wrong", {"a.jpg": one})
    assert write_images(tmp_path / "wrong", {"a.jpg": one}) == first
    second = write_images(tmp_path / "wrong", {"a.jpg": two})
    assert second.name == "wrong-2"
    assert (first / "a.jpg").read_bytes() != (second / "a.jpg").read_bytes()


def test_a_finished_training_offers_this_script():
    assert "python test.py -r run" in next_commands(Path("run"))


def test_bound_asks_for_enough_samples(tested, capsys):
    run = tested("-s", "inspection={target: '8', max_escape_bound: 0.01}")
    printed = capsys.readouterr().out
    assert "cannot show that at most 1.00% are missed; that takes 299, none of them" in printed
    stored = checkpoint.load(run / checkpoint.BEST)["inspection"]
    assert stored["validation"]["missed"] == 0
    assert "missed 8  " in printed
    assert f"of {stored['validation']['targets']} (0.00%), at most" in printed
    page = (run / "test" / "report.html").read_text(encoding="utf-8")
    assert "a bound of 1.00 % on the missed share" in page
