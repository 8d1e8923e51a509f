"""The tasks that come with the template, each from training to report, against other libraries."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn import metrics as sklearn_metrics
from torch import nn

import test as test_script
import train as train_script
from tests.conftest import ROOT, assert_same, build, last_checkpoint
from trainer.tasks import RegressionTask, SegmentationTask, SupervisedTask
from utils import checkpoint
from utils.errors import UserError

REGRESSION = {
    "arch": {"type": "MLP", "args": {"in_features": 10, "hidden": [16]}},
    "data_loader": {
        "type": "DiabetesDataLoader",
        "args": {"batch_size": 50, "validation_split": 0.2},
    },
    "task": "RegressionTask",
    "optimizer": {"type": "Adam", "args": {"lr": 0.01}},
    "loss": "mse_loss",
    "metrics": ["MeanAbsoluteError", "R2Score"],
}


def config_of(digits, sections):
    """The digits' config with other sections, without its schedule."""
    config = digits({"lr_scheduler": None, **sections})
    if "data_dir" not in sections["data_loader"]["args"]:
        config["data_loader"]["args"].pop("data_dir", None)
    return config


@pytest.mark.parametrize("name", ["two_digits_multilabel", "diabetes_mlp", "digits_gan"])
def test_a_shipped_config_that_needs_no_files_is_sound(name, data_dir, tmp_path):
    settings = [f"trainer.save_dir={tmp_path}"]
    settings += [] if name == "diabetes_mlp" else [f"data_loader.args.data_dir={data_dir}"]
    file = ROOT / "configs" / f"{name}.json"
    assert train_script.main(["-c", str(file), "--check", "-s", *settings]) == 0


def train_resume_test(config, train, resume, split="test"):
    """Train, compare with a run that was resumed, and test; the run's folder."""
    whole, half = train(config, "--epochs", 2), train(config, "--epochs", 1)
    resume(half, "--epochs", 2)
    for key in ("state_dict", "optimizer", "monitor_best"):
        assert_same(last_checkpoint(half)[key], last_checkpoint(whole)[key])
    assert test_script.main(["-r", str(whole), "--split", split]) == 0
    return whole


def results_of(run, split="test"):
    """result.json, the columns of predictions.csv and the page of a tested run."""
    suffix = "" if split == "test" else f"_{split}"
    result = json.loads((run / "test" / f"result{suffix}.json").read_text(encoding="utf-8"))
    with open(run / "test" / f"predictions{suffix}.csv", encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file)
    page = (run / "test" / f"report{suffix}.html").read_text(encoding="utf-8")
    return result, dict(zip(header, zip(*rows, strict=True), strict=True)), page


def outputs_of(run, config, split="test"):
    """The trained network's outputs and the targets, by a loop of the test's own."""
    trainer = build(config)
    trainer.model.load_state_dict(checkpoint.load(run / checkpoint.BEST)["state_dict"])
    loader = trainer.data_loader
    loader = trainer.valid_data_loader if split == "val" else loader.for_subset(split)
    with torch.no_grad():
        parts = [(trainer.model.eval()(data), target) for data, target in loader]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def test_regression_from_training_to_report(digits, train, resume):
    config = config_of(digits, REGRESSION)
    run = train_resume_test(config, train, resume)
    output, target = (part.double().numpy() for part in outputs_of(run, config))
    output = output[:, 0]
    result, columns, page = results_of(run)
    assert result["R2Score"] == pytest.approx(sklearn_metrics.r2_score(target, output), rel=1e-4)
    assert result["MeanAbsoluteError"] == pytest.approx(np.abs(target - output).mean(), rel=1e-4)
    assert result["loss"] == pytest.approx(np.square(target - output).mean(), rel=1e-4)
    values = {name: np.array(column, dtype=float) for name, column in columns.items()}
    assert np.allclose(values["true"], target)
    assert np.allclose(values["residual"], output - target, atol=1e-3)
    worst = np.abs(output - target).argsort()[::-1]
    assert page.index(f"<td>{worst[0]}</td>") < page.index(f"<td>{worst[1]}</td>")
    assert "predicted against true" in page


@pytest.mark.parametrize(("shape", "targets"), [((4,), (4, 1)), ((4, 1), (4,)), ((4, 3), (4, 3))])
def test_regression_compares_number_by_number(shape, targets):
    data, target = torch.randn(shape), torch.arange(np.prod(targets)).view(targets)
    step = RegressionTask(F.mse_loss).step(nn.Identity(), (data, target))
    expected = np.square(data.numpy().ravel() - target.numpy().ravel()).mean()
    assert step.loss.item() == pytest.approx(expected)
    assert step.output.shape == step.target.shape
    assert RegressionTask().columns(step)["error"].shape == (4,)


def test_regression_of_two_shapes_is_a_sentence(digits, train, capsys):
    train(config_of(digits, REGRESSION | {"arch.args.out_features": 2}), "--check", code=2)
    assert "compares number by number" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [tuple, list, dict])
def test_supervised_task_takes_several_inputs(kind):
    class Weighted(nn.Module):
        def forward(self, left, right):
            return left + 2 * right

    left, right, target = torch.randn(5, 3), torch.randn(5, 3), torch.arange(5) % 3
    inputs = {"right": right, "left": left} if kind is dict else kind([left, right])
    step = SupervisedTask(F.cross_entropy).step(Weighted(), (inputs, target))
    assert step.loss == F.cross_entropy(left + 2 * right, target)
    with pytest.raises(UserError, match="pairs"):
        SupervisedTask(F.cross_entropy).step(Weighted(), (left, right, target))


MULTI_LABEL = {
    "arch": {"type": "MLP", "args": {"in_features": 784, "out_features": 10, "hidden": [32]}},
    "data_loader": {
        "type": "shipped.FlatPairs",
        "args": {"batch_size": 64, "validation_split": 0.2},
    },
    "task": "MultiLabelTask",
    "optimizer": {"type": "Adam", "args": {"lr": 0.01}},
    "loss": "binary_cross_entropy_with_logits",
    "metrics": [
        {"type": "MultilabelAveragePrecision", "name": "mAP", "args": {"num_labels": 10}},
        {
            "type": "F1Score",
            "name": "F1",
            "args": {"task": "multilabel", "num_labels": 10, "average": "macro"},
        },
    ],
}
FLAT_PAIRS = """
from data_loader.data_loaders import TwoDigitsDataLoader
class FlatPairs(TwoDigitsDataLoader):
    def build_dataset(self, subset, augment):
        whole = super().build_dataset(subset, augment)
        return [(x.flatten(), y) for x, y in (whole[number] for number in range(len(whole)))]
"""


def test_several_labels_from_training_to_report(digits, train, resume, own_code, data_dir):
    own_code("shipped", FLAT_PAIRS)
    config = config_of(digits, MULTI_LABEL)
    config["data_loader"]["args"]["data_dir"] = str(data_dir)
    run = train_resume_test(config, train, resume)
    output, target = (part.numpy() for part in outputs_of(run, config))
    result, columns, page = results_of(run)
    ap = sklearn_metrics.average_precision_score(target, output, average=None)
    assert result["mAP"] == pytest.approx(ap.mean(), abs=1e-5)
    f1 = sklearn_metrics.f1_score(target, output > 0, average="macro", zero_division=0)
    assert result["F1"] == pytest.approx(f1, abs=1e-5)

    # the thresholds are the best ones of the validation samples, found by trying all of them
    valid_output, valid_target = (part.numpy() for part in outputs_of(run, config, "val"))
    thresholds = checkpoint.load(run / checkpoint.BEST)["decided"]["thresholds"]
    header, *rows = result["tables"]["Classes"]
    assert header == ["class", "AP", "threshold", "precision", "recall", "F1", "samples"]
    for number, row in enumerate(rows):
        scores, truth = valid_output[:, number], valid_target[:, number]
        logit = np.log(thresholds[str(number)] / (1 - thresholds[str(number)]))
        best = max(sklearn_metrics.f1_score(truth, scores >= cut) for cut in scores)
        assert sklearn_metrics.f1_score(truth, scores >= logit - 1e-5) == pytest.approx(best)
        found = output[:, number] >= logit - 1e-5
        expected = sklearn_metrics.precision_recall_fscore_support(
            target[:, number], found, average="binary", zero_division=0
        )
        assert row[1] == pytest.approx(ap[number], abs=1e-5)
        assert row[3:6] == pytest.approx(expected[:3])
        assert row[6] == target[:, number].sum()
        called = [str(number) in names.split(", ") for names in columns["predicted"]]
        assert called == found.tolist()
    assert [names.split(", ") for names in columns["true"]] == [
        [str(number) for number in np.flatnonzero(row)] for row in target
    ]
    assert "The largest loss first" in page


def test_images_with_several_labels_are_not_predicted_as_one_class(digits, train, capsys, tmp_path):
    config = digits({"task": "MultiLabelTask", "loss": MULTI_LABEL["loss"], "metrics": []})
    run = train(
        config | {"data_loader": config["data_loader"] | {"type": "TwoDigitsDataLoader"}},
        "--epochs",
        1,
    )
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    assert test_script.main(["-r", str(run), "--images", str(tmp_path / "a.png")]) == 2
    assert "several labels" in capsys.readouterr().err


SEGMENTATION = {
    "arch": {"type": "UNet", "args": {"width": 4}},
    "data_loader": {
        "type": "MaskFolderDataLoader",
        "args": {
            "classes": {"background": 0, "square": 7, "bar": 200},
            "image_size": 32,
            "channels": 1,
            "normalize": "data",
            "batch_size": 4,
            "transforms": {"train": ["RandomHorizontalFlip"]},
        },
    },
    "task": "SegmentationTask",
    "optimizer": {"type": "Adam", "args": {"lr": 0.01}},
    "loss": "cross_entropy",
    "metrics": [
        {
            "type": "JaccardIndex",
            "name": "mIoU",
            "args": {"task": "multiclass", "num_classes": 3, "ignore_index": -100},
        }
    ],
}


@pytest.fixture
def shapes(tmp_path):
    """A folder of images with a bright square and a dark bar, and their masks."""
    generator = np.random.default_rng(0)
    for subset, count in {"train": 12, "val": 5}.items():
        for number in range(count):
            image = generator.integers(100, 140, (32, 32)).astype(np.uint8)
            mask = np.zeros_like(image)
            row, column = generator.integers(2, 18, 2)
            mask[row : row + 10, column : column + 10] = 7
            mask[:, 29] = 200
            mask[0] = 255
            image[mask == 7] += 90
            image[mask == 200] -= 90
            for kind, array in (("images", image), ("masks", mask)):
                folder = tmp_path / "shapes" / subset / kind
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / f"{number}.png")
    return tmp_path / "shapes"


def test_segmentation_from_training_to_report(digits, train, resume, shapes):
    config = config_of(digits, SEGMENTATION)
    config["data_loader"]["args"]["data_dir"] = str(shapes)
    run = train_resume_test(config, train, resume, "val")
    output, target = outputs_of(run, config, "val")
    predicted, target = output.argmax(1).numpy(), target.numpy()
    counted = target != 255
    expected = sklearn_metrics.jaccard_score(target[counted], predicted[counted], average=None)
    result, columns, page = results_of(run, "val")
    assert result["mIoU"] == pytest.approx(expected.mean(), abs=1e-5)
    rows = result["tables"]["Classes"][1:]
    assert [row[0] for row in rows] == ["background", "square", "bar"]
    assert [row[1] for row in rows] == pytest.approx(expected.tolist())
    each = [
        sklearn_metrics.jaccard_score(t[c], p[c], average="macro")
        for t, p, c in zip(target, predicted, counted, strict=True)
    ]
    assert [float(value) for value in columns["iou"]] == pytest.approx(each, rel=1e-5)
    worst = Path(columns["sample"][int(np.argmin(each))]).as_posix()
    assert page.count('alt="The image, the same under its true classes') == 5
    assert page.index(worst) == min(page.index(Path(name).as_posix()) for name in columns["sample"])


@pytest.mark.parametrize("training", [True, False])
def test_auxiliary_output_of_segmentation_counts_half_in_training(training):
    class Two(nn.Module):
        def forward(self, x):
            return {"out": x, "aux": 2 * x}

    data, target = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    target[0, 0] = 255
    step = SegmentationTask(F.cross_entropy).step(Two().train(training), (data, target))
    main, extra = (F.cross_entropy(x, target, ignore_index=255) for x in (data, 2 * data))
    torch.testing.assert_close(step.loss, main + 0.5 * extra if training else main)
    assert step.output is data


def test_networks_of_torchvision_are_segmented_by_name(digits, train, shapes, monkeypatch):
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", pytest.fail)
    config = config_of(digits, SEGMENTATION | {"arch": "lraspp_mobilenet_v3_large"})
    config["data_loader"]["args"] |= {"data_dir": str(shapes), "image_size": 64}
    train(config, "--check")
