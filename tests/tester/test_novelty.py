"""Samples that are unlike the training data: against numpy, simulations, and images that were
changed on purpose.
"""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter

import test as script
from tester.appearance import WORDS, appearance, differences
from tester.novelty import DIRECTIONS, Distance, chance, fit, with_limit
from tests.conftest import last_checkpoint
from utils import checkpoint


def test_distance_is_that_of_mahalanobis_to_the_nearest_class():
    generator = np.random.default_rng(0)
    size, count = 70, 300
    mixing = generator.normal(0, 1, (size, size)) * np.geomspace(3, 0.1, size)
    targets = torch.arange(count) % 3
    centres = generator.normal(0, 5, (3, size))
    features = generator.normal(0, 1, (count, size)) @ mixing.T + centres[targets]
    novelty = fit(torch.from_numpy(features).float(), targets)
    means = np.stack([features[targets == n].mean(0) for n in range(3)])
    offsets = features - means[targets]
    values, vectors = np.linalg.eigh(offsets.T @ offsets / (count - 3))
    values[:-DIRECTIONS] = values[:-DIRECTIONS].mean()  # one variance for the small directions
    inverse = np.linalg.inv(vectors * values @ vectors.T)
    new = generator.normal(0, 4, (20, size))
    between = new[:, None] - means
    squares = np.einsum("ncd,de,nce->nc", between, inverse, between)
    expected = np.sqrt(squares.min(1) / size)
    ours = Distance(novelty)(torch.from_numpy(new).float())
    assert np.allclose(ours, expected, rtol=1e-3)
    limited = with_limit(novelty, ours.numpy())
    assert (limited["rank"], limited["samples"]) == (19, 20)
    assert (Distance(limited)(torch.from_numpy(new).float()) > 1 + 1e-6).sum() == 1
    maps = torch.rand(4, size, 3, 5)
    assert torch.equal(Distance(novelty)(maps), Distance(novelty)(maps.mean((2, 3))))


def test_chance_is_what_simulated_samples_show():
    generator = np.random.default_rng(0)
    samples, rank, count, draws = 40, 38, 60, 4000
    limits = np.sort(generator.random((draws, samples)), 1)[:, rank - 1]
    beyond = (generator.random((draws, count)) > limits[:, None]).sum(1)
    for at_least in (1, 4, 8, 12):
        share = (beyond >= at_least).mean()
        assert chance(at_least, count, rank, samples) == pytest.approx(share, abs=0.03)


def parts(generator, count):
    """Grey images of parts (count, 48, 48), uint8: a bright block somewhere near the middle."""
    images = generator.normal(90, 6, (count, 48, 48))
    for image in images:
        x, y, light = *generator.integers(12, 20, 2), generator.normal(80, 10)
        image[y : y + 16, x : x + 16] += light
        image[y + 4 : y + 6, x + 2 : x + 14] -= 60
    return images.clip(0, 255).astype(np.uint8)


CHANGES = {
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.85),
    "of less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "shifted to the left": lambda image: np.roll(image, -4, 1),
    "shifted downwards": lambda image: np.roll(image, 4, 0),
}


@pytest.mark.parametrize("words", CHANGES)
def test_changed_images_are_described_and_others_are_not(words):
    generator = np.random.default_rng(0)
    known = appearance(torch.from_numpy(parts(generator, 80))[:, None]).numpy()
    warned = {False: 0, True: 0}
    for _ in range(20):
        images = parts(generator, 60)
        changed = [np.asarray(CHANGES[words](Image.fromarray(image))) for image in images]
        for is_changed, own in ((False, images), (True, np.stack(changed))):
            values = appearance(torch.from_numpy(own.copy())[:, None]).numpy()
            found = differences(known, values, ["OK"] * 80, ["OK"] * 60)
            warned[is_changed] += bool(found)
            assert not is_changed or words in [difference["words"] for difference in found]
    assert warned[True] == 20
    assert warned[False] <= 1


def test_another_mixture_of_classes_is_no_difference():
    generator = np.random.default_rng(0)
    values = generator.normal(0, 1, (200, len(WORDS)))
    labels = np.array(["NG", "OK"])[(np.arange(200) % 2)]
    values[labels == "NG"] += 3
    mixed = np.concatenate(
        [np.flatnonzero(labels == "NG")[:90], np.flatnonzero(labels == "OK")[:20]]
    )
    assert differences(values, values[mixed], labels, labels[mixed]) == []


@pytest.fixture
def line(tmp_path, image_config, train):
    """(run, folder of images) of a network for parts with and without a dark line."""
    generator = np.random.default_rng(0)
    for number, image in enumerate(parts(generator, 160)):
        label = "NG" if number % 2 else "OK"
        if number % 2:
            image[30:34] = 20
        (tmp_path / "parts" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "parts" / label / f"{number}.png")
    loader = {"split": [0.4, 0.4, 0.2], "stratify": True}
    config = image_config(tmp_path / "parts", **loader) | {"inspection": {"target": "NG"}}
    run = train(config)
    assert script.main(["-r", str(run)]) == 0
    return run, tmp_path / "parts"


def test_test_and_images_say_what_is_unlike(line, capsys, tmp_path):
    run, folder = line
    result = json.loads((run / "test" / "result.json").read_text())["novelty"]
    assert result["n"] == 32
    assert result["differences"] == []
    assert "warning" not in capsys.readouterr().out
    with open(run / "test" / "predictions.csv", newline="", encoding="utf-8-sig") as file:
        distances = [float(row["distance"]) for row in csv.DictReader(file)]
    assert sum(distance > 1 for distance in distances) == result["beyond"]
    assert "Unlike the training data" in (run / "test" / "report.html").read_text("utf-8")
    stored = checkpoint.load(run / checkpoint.BEST)["novelty"]
    assert len(stored["appearance"]) == stored["samples"] == 64
    assert "novelty" not in last_checkpoint(run)
    same, dark = tmp_path / "same", tmp_path / "dark"
    for place in (same, dark):
        shutil.copytree(folder / "OK", place)
    for path in dark.iterdir():
        image = ImageEnhance.Brightness(Image.open(path)).enhance(0.7)
        image.save(path)
    assert script.main(["-r", str(run), "--images", str(same)]) == 0
    assert "compared with the validation samples" not in capsys.readouterr().out
    assert script.main(["-r", str(run), "--images", str(dark)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "the images called" in shown
    assert "are darker" in shown
    with open(
        run / "test" / "images" / "predictions.csv", newline="", encoding="utf-8-sig"
    ) as file:
        assert "distance" in next(csv.DictReader(file))
