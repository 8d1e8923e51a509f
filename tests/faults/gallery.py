"""A folder with a file of every kind that the scripts read, made once, to be damaged in copies."""

import json
import shutil
from pathlib import Path
from typing import Any

from tests.faults.lab import DIGITS, TIMES, Lab, check, find_run, merged, table, write_config
from tests.faults.server import isolated, run

OWN = {"epochs": 2, "len_epoch": 3, "verbosity": 1, "monitor": "off", "tensorboard": False}
CONFIGS = {
    "digits.json": merged(
        DIGITS,
        {"data_loader": {"args": {"data_dir": "data"}}, "trainer": {"epochs": 2, "len_epoch": 4}},
    ),
    "child.json": {
        "extends": ["digits.json"], "name": "Child", "optimizer": {"args": {"lr": 0.01}},
    },
    "parts.json": {
        "name": "Parts",
        "seed": 5,
        "n_gpu": 0,
        "arch": {"type": "LeNet"},
        "data_loader": {
            "type": "ImageFolderDataLoader",
            "args": {
                "data_dir": "parts", "image_size": 28, "channels": 1, "batch_size": 8,
                "normalize": "data", "cache": "disk", "transforms": "none",
            },
        },
        "optimizer": "Adam",
        "loss": "cross_entropy",
        "metrics": ["accuracy"],
        "trainer": OWN,
    },
    "texts.json": {
        "name": "Texts",
        "seed": 5,
        "n_gpu": 0,
        "arch": {"type": "GRUClassifier", "args": {"hidden": 8}},
        "data_loader": {
            "type": "TextFolderDataLoader",
            "args": {"data_dir": "texts", "batch_size": 8, "validation_split": 0.1},
        },
        "optimizer": "Adam",
        "loss": "cross_entropy",
        "trainer": OWN,
    },
    "masks.json": {
        "name": "Masks",
        "seed": 5,
        "n_gpu": 0,
        "arch": {"type": "UNet", "args": {"width": 4}},
        "data_loader": {
            "type": "MaskFolderDataLoader",
            "args": {
                "data_dir": "masks", "classes": {"cell": 255, "membrane": 0}, "image_size": 32,
                "channels": 1, "normalize": "data", "batch_size": 2,
            },
        },
        "task": "SegmentationTask",
        "optimizer": "Adam",
        "loss": "cross_entropy",
        "trainer": OWN,
    },
    "prune.json": merged(
        DIGITS,
        {
            "name": "Pruned",
            "data_loader": {"args": {"data_dir": "data"}},
            "pruner": {"type": "MagnitudePruner", "args": {"channel_sparsity": 0.5, "round_to": 2}},
            "trainer": {"type": "PruneTrainer", "epochs": 1, "len_epoch": 2},
        },
    ),
}  # fmt: skip


def gallery(lab: Lab) -> Path:
    """The folder; runs are named "run", so that commands can name them."""
    return lab.once("gallery", lambda: _make(lab))


def _make(lab: Lab) -> Path:
    work = lab.fresh("gallery")
    shutil.copytree(lab.folder / "data", work / "data")
    isolated(_save_samples, work)
    for name, config in CONFIGS.items():
        write_config(work, config, name)
    for config in ("digits", "parts"):
        name = CONFIGS[f"{config}.json"]["name"]
        check(run(work, ["train.py", "-c", f"{config}.json"]), allowed=(0,))
        made = find_run(work, name)
        for kind in ("models", "log"):
            folder = work / "saved" / kind / name
            (folder / made.name).rename(folder / "run")
        command = [f"saved/models/{name}/run", "-s", "exporter.args.max_accuracy_drop=0.9"]
        check(
            run(work, ["export.py", "-r", *command, "exporter.args.opset=17", "--int8"]),
            allowed=(0,),
        )
        check(run(work, ["test.py", "-r", command[0]]), allowed=(0,))
    return work


def _save_samples(work: Path) -> None:
    """Images of two classes in several formats, texts of three, images with masks."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(7)
    for part, count in (("train", 8), ("val", 3), ("test", 3)):
        for label, (name, low) in enumerate((("NG", 0), ("OK", 90))):
            folder = work / "parts" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(low, low + 150, (32, 32)).astype(np.uint8)
                deep = (pixels.astype(np.uint16) * 16, ".png") if number == 1 and label else None
                suffix = (".png", ".jpg", ".bmp", ".tif", ".gif", ".webp")[number % 6]
                array, suffix = deep or (pixels, suffix)
                Image.fromarray(array).save(folder / f"{number}{suffix}")
    for part, count in (("train", 6), ("val", 2)):
        for kind in ("images", "masks"):
            folder = work / "masks" / part / kind
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (32, 32)).astype(np.uint8)
                pixels = pixels if kind == "images" else (pixels // 128 * 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    (work / "texts").mkdir()
    for name in ("English", "Irish", "Übersee"):
        lines = ["".join(map(chr, generator.integers(97, 123, 9))) for _ in range(30)]
        (work / "texts" / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")


def answers(work: Path) -> dict[str, Any]:
    """The numbers that commands have left in a copy: of each epoch, each test, each export."""
    found: dict[str, Any] = {}
    for models in sorted((work / "saved" / "models").glob("*/*")):
        # a new run is called by the time
        name = f"{models.parent.name}/{'run' if models.name == 'run' else 'new'}"
        found[f"{name}/metrics.csv"] = table(models)
        for file in (*models.glob("test/result*.json"), models / "export.json"):
            if file.exists():
                numbers = json.loads(file.read_text(encoding="utf-8")).get("metrics", {})
                found[f"{name}/{file.name}"] = _without_times(numbers)
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in TIMES}
    return value
