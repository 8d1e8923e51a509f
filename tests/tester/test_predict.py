"""test.py --images: the original model's predictions for single images; errors for other files."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

import test as script
from base.base_task import Step
from data_loader.data_loaders import DigitsDataLoader
from model.model import LeNet
from tester.predict import plain_preparation
from tester.predictions import Predictions
from utils import checkpoint


@pytest.fixture
def run(digits_run):
    return digits_run


@pytest.fixture
def images(tmp_path, data_dir):
    """A folder of 12 digits as PNG files, in two folders with the same names."""
    samples = DigitsDataLoader(str(data_dir)).for_subset("test").samples
    for number in range(12):
        folder = tmp_path / "images" / ("線" if number % 2 else "line")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(samples.images[number, 0].numpy()).save(folder / f"{number // 2}.png")
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    return tmp_path / "images"


def answers(run, files):
    model = LeNet()
    model.load_state_dict(checkpoint.load(run / checkpoint.BEST)["state_dict"])
    pixels = (
        torch.stack([torch.from_numpy(np.array(Image.open(file)))[None] for file in files]).float()
        / 255
    )
    with torch.no_grad():
        return model.eval()((pixels - 0.22) / 0.32).exp()


def table(run):
    with open(
        run / "test" / "images" / "predictions.csv", encoding="utf-8-sig", newline=""
    ) as file:
        return list(csv.DictReader(file))


def test_predictions_for_a_folder_equal_the_models(run, images, capsys, monkeypatch):
    def no_data(*arguments):
        raise AssertionError("the data set is not needed")

    monkeypatch.setattr(DigitsDataLoader, "build_dataset", no_data)
    assert script.main(["-r", str(run), "--images", str(images), "--heatmap"]) == 0
    rows = table(run)
    files = sorted(images.glob("*/*.png"))
    assert [row["picture"] for row in rows] == [str(file) for file in files]
    expected = answers(run, files)
    predicted = np.array([[float(row[f"p({digit})"]) for digit in range(10)] for row in rows])
    assert np.allclose(predicted, expected, atol=1e-4)
    assert [row["predicted"] for row in rows] == [str(n) for n in expected.argmax(1).tolist()]
    assert "decision" not in rows[0]
    line = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith(str(files[0]))
    )
    likeliest = expected[0].argsort(descending=True)[:3].tolist()
    assert line == f"{files[0]}: " + ", ".join(f"{n} {expected[0][n]:.4f}" for n in likeliest)
    overlays = list((run / "test" / "images" / "heatmaps").iterdir())
    assert len(overlays) == 12  # also of files with the same name
    with Image.open(overlays[0]) as overlay:
        assert overlay.size == (28, 28)
        assert overlay.mode == "RGB"


def test_unreadable_files_are_named_and_skipped(run, images, capsys):
    (images / "a.png").write_bytes(b"")
    (images / "b.jpg").write_text("not an image")
    whole = (images / "line" / "0.png").read_bytes()
    (images / "c.png").write_bytes(whole[: len(whole) // 2])
    assert script.main(["-r", str(run), "--images", str(images), str(images / "notes.txt")]) == 1
    assert len(table(run)) == 12
    last = capsys.readouterr().err
    assert "4 of 16 could not be read" in last
    for name in ("a.png", "b.jpg", "c.png", "notes.txt"):
        assert name in last
    assert script.main(["-r", str(run), "--images", str(images / "a.png")]) == 1
    assert "1 of 1 could not be read" in capsys.readouterr().err
    assert len(table(run)) == 12  # the earlier answers stay


def test_file_of_another_size_and_color(run, tmp_path, data_dir):
    digit = DigitsDataLoader(str(data_dir)).for_subset("test").samples.images[0, 0].numpy()
    Image.fromarray(digit).resize((112, 112)).convert("RGB").save(tmp_path / "large.bmp")
    assert script.main(["-r", str(run), "--images", str(tmp_path / "large.bmp")]) == 0
    Image.fromarray(digit).save(tmp_path / "same.png")
    assert table(run)[0]["predicted"] == str(answers(run, [tmp_path / "same.png"]).argmax().item())


def test_heatmap_needs_images(run, capsys):
    assert script.main(["-r", str(run), "--heatmap"]) == 2
    assert "also pass --images PATH" in capsys.readouterr().err
    assert not (run / "test").exists()


@pytest.mark.parametrize(
    ("path", "message"), [("nowhere.png", "there is no"), ("empty", "no images in")]
)
def test_paths_without_images(run, tmp_path, capsys, path, message):
    (tmp_path / "empty").mkdir()
    assert script.main(["-r", str(run), "--images", str(tmp_path / path)]) == 2
    assert message in capsys.readouterr().err


def decided_class(probabilities, names, inspection):
    predictions = Predictions(names, inspection=inspection)
    output = torch.tensor([probabilities]).log()
    predictions.add(Step(None, output, torch.zeros(1, dtype=torch.long), 1))
    [label] = predictions.columns()["predicted"]
    return label


def test_stored_threshold_decides(run, images, capsys):
    file = run / checkpoint.BEST
    state = checkpoint.load(file)
    for threshold in (0.0, 1.1):
        checkpoint.save(
            state | {"inspection": {"target": "8", "threshold": threshold, "max_escape": 0.0}}, file
        )
        assert script.main(["-r", str(run), "--images", str(images)]) == 0
        decisions = {row["decision"] for row in table(run)}
        assert decisions == {"8"} if threshold == 0 else "8" not in decisions
    chosen = {"target": "NG", "threshold": 0.2}
    for probability, label in (([0.8, 0.2], "NG"), ([0.81, 0.19], "OK")):
        assert decided_class(probability, ["OK", "NG"], chosen) == label
    higher, names = chosen | {"threshold": 0.7}, ["a", "b", "NG"]
    assert decided_class([0.1, 0.3, 0.6], names, higher) == "b"


def test_a_person_is_asked_between_two_thresholds(run, images):
    inspection = {"target": "8", "threshold": 0.0, "sure_threshold": 1.1, "temperature": 2.0}
    state = checkpoint.load(run / checkpoint.BEST)
    checkpoint.save(state | {"inspection": inspection}, run / checkpoint.BEST)
    assert script.main(["-r", str(run), "--images", str(images)]) == 0
    rows = table(run)
    assert {row["decision"] for row in rows} == {"unsure"}
    for row in rows:
        outputs = np.log([float(row[f"p({digit})"]) for digit in range(10)])
        softer = np.exp(outputs / 2) / np.exp(outputs / 2).sum()
        assert float(row["confidence"]) == pytest.approx(softer[8], rel=1e-4)


def test_loaders_own_preparation_with_the_checkpoints_normalization(
    digits, train, own_code, images
):
    """The checkpoint has the result of normalize="data": the data is not read to find it again."""
    own_code(
        "prepared",
        "from data_loader.data_loaders import DigitsDataLoader\n"
        "class Prepared(DigitsDataLoader):\n"
        "    '''Digits.\n\n    Args:\n        normalize: numbers\n    '''\n"
        "    def __init__(self, normalize: str | dict = 'data', **kwargs):\n"
        "        self.normalize = normalize\n"
        "        super().__init__(**kwargs)\n"
        "    def prepare(self, image):\n"
        "        assert abs(self.normalize['mean'][0] - 0.22) < 1e-6\n"
        "        return (image / 255 - self.normalize['mean'][0]) / self.normalize['std'][0]\n",
    )
    run = train(digits({"data_loader.type": "prepared.Prepared", "trainer.epochs": 1}))
    assert script.main(["-r", str(run), "--images", str(images / "line")]) == 0
    expected = answers(run, sorted((images / "line").iterdir()))
    assert np.allclose([float(row["p(3)"]) for row in table(run)], expected[:, 3], atol=1e-4)


def test_plain_preparation_is_what_the_loader_serves(data_dir):
    loader = DigitsDataLoader(str(data_dir)).for_subset("test")
    served, _ = loader.samples[5]
    assert torch.allclose(
        plain_preparation(loader.samples.images[5], loader.input), served, atol=1e-6
    )


def test_network_that_is_not_a_classifier(run, images, capsys, monkeypatch):
    monkeypatch.setattr(
        "tester.predict.build_trained_network", lambda config, threads: torch.nn.Conv2d(1, 2, 3)
    )
    assert script.main(["-r", str(run), "--images", str(images)]) == 2
    assert "not a classifier" in capsys.readouterr().err


def test_check_predicts_one_image_and_leaves_nothing(run, images, capsys):
    before = sorted(run.rglob("*"))
    assert script.main(["-r", str(run), "--check", "--images", str(images)]) == 0
    assert "check passed" in capsys.readouterr().out
    assert sorted(run.rglob("*")) == before
