"""A network of each of torchvision's families, from scratch on 60 images, must also answer."""

import csv

import numpy as np
import pytest
from PIL import Image

from utils import run_folder

# the smallest builder of each family, and the size of the images if 64 pixels are too few for it
FAMILIES = {
    "alexnet": 64, "convnext_tiny": 64, "densenet121": 64, "efficientnet_b0": 64,
    "efficientnet_v2_s": 64, "googlenet": 64, "inception_v3": 299, "maxvit_t": 224,
    "mnasnet0_5": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "regnet_x_400mf": 64,
    "resnet18": 64, "shufflenet_v2_x0_5": 64, "squeezenet1_1": 64, "swin_t": 64, "vgg11": 64,
    "vit_b_32": 64,
}  # fmt: skip
SEEDS = 1, 2, 3


def save_parts(folder, count=30):
    """Noisy grey plates: with a bright spot at any place, and without."""
    generator = np.random.default_rng(0)
    rows, columns = np.indices((64, 64))
    for name in ("spot", "plain"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = generator.normal(90, 12, (64, 64))
            if name == "spot":
                row, column, radius = (*generator.integers(16, 48, 2), generator.integers(12, 20))
                image[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] += 120
            image = Image.fromarray(image.clip(0, 255).astype(np.uint8))
            image.save(folder / name / f"{number}.png")


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_family_learns_and_answers_or_is_warned_of(tmp_path, train, capsys, name, seed):
    save_parts(tmp_path / "parts")
    loader = {
        "data_dir": str(tmp_path / "parts"), "split": [0.75, 0.25, 0.0], "batch_size": 16,
        "image_size": FAMILIES[name], "normalize": "data",
        "drop_last": name == "inception_v3",  # whose auxiliary head cannot train on one sample
    }  # fmt: skip
    config = {
        "name": "Parts",
        "seed": seed,
        "arch": name,
        "data_loader": {"type": "ImageFolderDataLoader", "args": loader},
        "optimizer": {"type": "AdamW", "args": {"lr": 0.001}},
        "loss": "cross_entropy",
        "metrics": ["accuracy"],
        "trainer": {
            "epochs": 20,
            "save_freq": 20,  # large networks fill the disk
            "save_dir": str(tmp_path / "saved"),
            "monitor": "max val_accuracy",
            "tensorboard": False,
            "verbosity": 0,
        },
    }
    run = train(config)
    with open(run_folder.log_dir_for(run) / "metrics.csv", newline="") as file:
        best = max(float(row["val_accuracy"]) for row in csv.DictReader(file))
    output = capsys.readouterr().out
    print(f"\n{name} seed {seed}: {best:.3f} {output}")
    assert best >= 0.9 or "samples" in output  # find_doubts in trainer/answers.py
