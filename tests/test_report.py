"""What test.py leaves: numbers as scikit-learn's, a page that needs nothing else, tables, wrong pictures, a threshold."""

import base64
import csv
import html.parser
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

import test as script
from logger.charts import as_picture
from logger.files import file_names, write_pictures
from model.model import LeNet
from parse_config import ConfigParser
from tests.conftest import assert_same
from trainer.inspection import choose_threshold, rates
from trainer.predictions import Predictions, is_classification
from utils import checkpoint

NAMES = list("0123456789")


def collected(targets, probabilities, names=None):
    predictions = Predictions(names)
    targets, probabilities = torch.tensor(targets), torch.tensor(probabilities, dtype=torch.float64)
    for part in torch.arange(len(targets)).split(7):
        predictions.add(torch.rand(len(part), 1, 4, 4), targets[part], probabilities[part].log())
    return predictions


class Sources(html.parser.HTMLParser):
    """Everything a page would fetch."""

    def __init__(self):
        super().__init__()
        self.found, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.found += [value for key, value in attributes if key in ("src", "href", "data", "srcset")]


@pytest.fixture
def tested(digits, train):
    """A function that trains a little, tests, and gives the run's folder."""

    def run(*arguments, **changes):
        folder = train(digits({"trainer.epochs": 2, **changes}))
        assert script.main(["-r", str(folder), *arguments]) == 0
        return folder

    return run


def network_says(run, subset="test"):
    state = checkpoint.load(run / checkpoint.BEST)
    model = LeNet()
    model.load_state_dict(state["state_dict"])
    loader = ConfigParser(state["config"]).init_obj("data_loader").of_subset(subset)
    with torch.no_grad():
        parts = [(model.eval()(data).exp(), data, target) for data, target in loader]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def test_page_tables_and_wrong_pictures(tested):
    run = tested("-s", "inspection={target: '8', max_escape: 0.1}")
    probability, data, target = network_says(run)
    predicted = probability.argmax(1)
    result = json.loads((run / "test" / "result.json").read_text(encoding="utf-8"))
    columns = precision_recall_fscore_support(target, predicted, zero_division=0)
    for key, column in zip(("precision", "recall", "f1", "support"), columns, strict=True):
        assert [result["per_class"][name][key] for name in NAMES] == pytest.approx(column.tolist())

    with open(run / "test" / "predictions.csv", encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["sample", "true", "predicted", *(f"p({name})" for name in NAMES)]
    assert [int(row[1]) for row in rows] == target.tolist()
    assert [int(row[2]) for row in rows] == predicted.tolist()
    assert np.allclose(np.array([row[3:] for row in rows], dtype=float), probability, atol=1e-5)
    assert [row[0] for row in rows] == [str(n) for n in range(359)]

    wrong = (predicted != target).nonzero().flatten()
    expected = {f"{target[i]}_to_{predicted[i]}_{i}.jpg" for i in wrong}
    assert {p.name for p in (run / "test" / "wrong_images").iterdir()} == expected
    i = wrong[0]
    with Image.open(run / "test" / "wrong_images" / f"{target[i]}_to_{predicted[i]}_{i}.jpg") as picture:
        pixels = (data[i, 0] * 0.32 + 0.22).numpy() * 255
        assert np.abs(np.array(picture) - pixels).mean() < 3

    page = (run / "test" / "report.html").read_text(encoding="utf-8")
    sources = Sources()
    sources.feed(page)
    assert "script" not in sources.tags
    assert sources.found
    assert all(source.startswith("data:") for source in sources.found)
    assert not re.search(r"https?://|url\(|@import", page)
    for text in ("Inspection: 8", "Confusion matrix", "model_best.pth", f"{result['accuracy']:.4f}", "arXiv:1911.00068"):
        assert text in page
    charts = [base64.b64decode(s.partition(",")[2]).decode() for s in sources.found if "svg" in s]
    assert any("predicted class" in chart and "true class" in chart for chart in charts)
    assert page.count('alt="heat map for') == page.count('alt="what the network saw"') >= min(24, len(wrong))


def test_a_second_test_destroys_nothing(tested):
    run = tested()
    before = {p.name: p.read_bytes() for p in (run / "test" / "wrong_images").iterdir()}
    assert script.main(["-r", str(run)]) == 0
    assert not (run / "test" / "wrong_images-2").exists()  # the very same pictures
    assert script.main(["-r", str(run / "checkpoint-epoch1.pth")]) == 0
    assert {p.name: p.read_bytes() for p in (run / "test" / "wrong_images").iterdir()} == before
    assert any((run / "test" / "wrong_images-2").iterdir())


def test_the_threshold_is_chosen_on_validation_data_and_stored(tested):
    run = tested("-s", "inspection={target: '8', max_escape: 0.1}")
    file = run / checkpoint.BEST
    probability, _, target = network_says(run, "val")
    of_target = np.sort(probability[target == 8, 8].numpy())
    stored = checkpoint.load(file)["inspection"]
    assert stored["target"] == "8"
    assert stored["max_escape"] == 0.1
    assert stored["threshold"] == pytest.approx(of_target[int(len(of_target) * 0.1)], rel=1e-4)

    probability, _, target = network_says(run)
    result = json.loads((run / "test" / "result.json").read_text(encoding="utf-8"))["inspection"]
    for key, called in (
        ("at_threshold", probability[:, 8] >= stored["threshold"]),
        ("at_likeliest", probability.argmax(1) == 8),
    ):
        (good, overkill), (escaped, caught) = confusion_matrix(target == 8, called)
        assert result[key]["escape"] == pytest.approx(escaped / (escaped + caught))
        assert result[key]["overkill"] == pytest.approx(overkill / (good + overkill))

    # stored: no validation data are read again, and testing does not make a run the newest
    state, modified = checkpoint.load(file), file.stat().st_mtime_ns
    checkpoint.save(state | {"inspection": stored | {"threshold": 0.123}}, file)
    assert script.main(["-r", str(run)]) == 0
    assert json.loads((run / "test" / "result.json").read_text())["inspection"]["threshold"] == 0.123
    stamped = file.stat().st_mtime_ns
    assert script.main(["-r", str(run), "-s", "inspection={target: '3'}"]) == 0
    assert file.stat().st_mtime_ns == pytest.approx(stamped, abs=1e6)
    assert stamped >= modified
    again = checkpoint.load(file)
    assert again["inspection"]["target"] == "3"
    assert_same(again | {"inspection": None}, state | {"inspection": None})


@pytest.mark.parametrize("max_escape", [0.0, 0.05, 0.34, 0.9])
def test_it_is_the_largest_threshold_within_the_bound(max_escape):
    probability = np.random.default_rng(0).random(53).round(2)  # with ties
    threshold = choose_threshold(probability, max_escape)
    assert (probability < threshold).mean() <= max_escape
    for larger in [np.nextafter(threshold, 2), *probability[probability > threshold]]:
        assert (probability < larger).mean() > max_escape


def test_rates_without_samples_are_none():
    assert rates(np.array([True, False]), np.array([True, True])) == {"escape": 0.5, "overkill": None}


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"target": "NG"}, 'inspection.target: "NG" is none of the classes 0, 1, 2'),
        ({"taget": "8"}, 'inspection: {"taget": "8"} should be an object of target (a text), max_escape (a number'),
        ({"target": "8", "max_escape": 1.5}, "max_escape (a number of at least 0 and below 1)"),
    ],
)
def test_faults_of_the_inspection_section(digits, train, capsys, section, said):
    run = train(digits({"trainer.epochs": 1}))
    assert script.main(["-r", str(run), "-s", f"inspection={json.dumps(section)}"]) == 2
    assert said in capsys.readouterr().err


def test_an_inspection_needs_validation_data(digits, train, capsys):
    config = digits({"data_loader.args.validation_split": 0, "trainer.monitor": "min loss", "inspection": {"target": "8"}})
    assert script.main(["-r", str(train(config))]) == 2
    assert "no validation data" in capsys.readouterr().err


def test_scores_of_classes_that_are_missing():
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(4), 50)
    probabilities[:, 2] = 0  # never predicted
    targets = rng.integers(0, 3, 50)  # 3 never there
    predictions = collected(targets, probabilities, ["a", "b", "c", "d"])
    predicted = probabilities.argmax(1)
    assert np.array_equal(predictions.confusion(), confusion_matrix(targets, predicted, labels=range(4)))
    columns = precision_recall_fscore_support(targets, predicted, labels=range(4), zero_division=0)
    for key, column in zip(("precision", "recall", "f1", "support"), columns, strict=True):
        assert [row[key] for row in predictions.per_class().values()] == pytest.approx(column.tolist())


def test_suspects_are_the_labels_that_were_changed():
    rng = np.random.default_rng(2)
    true = rng.integers(0, 3, 300)
    probabilities = np.full((300, 3), 0.02)
    probabilities[np.arange(300), true] = 0.96 - rng.random(300) * 0.1
    probabilities /= probabilities.sum(1, keepdims=True)
    given = true.copy()
    changed = rng.choice(300, 12, replace=False)
    given[changed] = (true[changed] + 1) % 3
    assert collected(true, probabilities).suspects() == []
    found = collected(given, probabilities).suspects()
    average = [probabilities[given == j, j].mean() for j in range(3)]
    assert set(found) == {int(i) for i in changed if probabilities[i, true[i]] >= average[true[i]]}
    assert len(found) >= 10


def test_pictures_of_the_most_confident_mistakes_are_kept(monkeypatch):
    monkeypatch.setattr("trainer.predictions.KEPT", 5)
    rng = np.random.default_rng(3)
    probabilities, targets = rng.dirichlet(np.ones(3), 40), rng.integers(0, 3, 40)
    wrong = [i for i in range(40) if probabilities[i].argmax() != targets[i]]
    assert list(collected(targets, probabilities).pictures) == sorted(wrong, key=lambda i: -probabilities[i].max())[:5]


def test_what_counts_as_classification():
    assert is_classification(torch.tensor([0, 1]), torch.rand(2, 2))
    for target, output in (
        (torch.rand(2), torch.rand(2, 2)),
        (torch.tensor([0, 5]), torch.rand(2, 2)),
        (torch.tensor([[0, 1]]), torch.rand(1, 2)),
        (torch.tensor([0, 1]), torch.rand(2, 2, 8, 8)),
    ):
        assert not is_classification(target, output)


def test_file_names_fit_every_system():
    names = file_names(["a/b", "a?b", "A_B", "良品", "x" * 300, "良" * 300, "..", "end. "], ".jpg")
    assert names[:4] == ["a_b.jpg", "a_b-2.jpg", "A_B-3.jpg", "良品.jpg"]
    assert len({name.lower() for name in names}) == len(names)
    assert all(len(name.encode()) < 255 and not re.search(r'[\\/:*?"<>|]', name) for name in names)
    assert names[-2:] == ["_.jpg", "end.jpg"]


def test_nothing_is_overwritten(tmp_path):
    one, two = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    first = write_pictures(tmp_path / "wrong", {"a.jpg": one})
    assert write_pictures(tmp_path / "wrong", {"a.jpg": one}) == first
    second = write_pictures(tmp_path / "wrong", {"a.jpg": two})
    assert second.name == "wrong-2"
    assert (first / "a.jpg").read_bytes() != (second / "a.jpg").read_bytes()


def test_pictures_are_what_the_network_saw():
    pixels = torch.randint(256, (3, 5, 7), dtype=torch.uint8)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    seen = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    made = np.array(as_picture(seen, {"mean": mean, "std": std}))
    assert np.array_equal(made, pixels.permute(1, 2, 0).numpy())
