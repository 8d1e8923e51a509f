"""python -m tests.benchmarks [--gpu] [--only NAME ...] [--data FOLDER] [--rounds N]"""

import argparse
import datetime
import json
import logging
import os
import tempfile
from pathlib import Path

import torch

from tests.benchmarks import cpu, epochs, gpu, growth, loading, measure, peers, steps
from tests.conftest import build
from trainer import evaluate


def evaluation(data_dir: Path, save_dir: Path, rounds: int) -> dict[str, float]:
    """evaluate() with two metrics against the forward pass alone, on MNIST's 6,000 validation
    samples.
    """
    trainer = build(epochs.config(data_dir, save_dir))
    loader, model = trainer.valid_data_loader, trainer.model

    @torch.no_grad()
    def bare() -> None:
        model.eval()
        for data, target in loader:
            torch.nn.functional.cross_entropy(model(trainer.engine.to_device(data)), target)

    ways = {
        "ours": lambda: evaluate(model, loader, trainer.criterion, trainer.metrics, trainer.engine),
        "bare": bare,
    }
    timings = measure.in_turn(rounds * 3, ways)
    return {"evaluation / forward passes alone": timings.ratio("ours", "bare")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    data = Path(os.environ.get("KATA_DATA", "data"))
    parser.add_argument(
        "--data",
        type=Path,
        default=data,
        help="holds mnist/ and hymenoptera_256/ (default: KATA_DATA)",
    )
    parser.add_argument("--gpu", action="store_true", help="what only a GPU can show, instead")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of them")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks.json"), help="where the figures are written"
    )
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    rounds, mnist, images = (
        arguments.rounds,
        arguments.data / "mnist",
        arguments.data / "hymenoptera_256",
    )
    with tempfile.TemporaryDirectory(prefix="kata-benchmarks-") as folder:
        save_dir = Path(folder)
        parts = {
            "epoch": lambda: epochs.mnist_epoch(mnist, save_dir, rounds),
            "steps": lambda: steps.overhead(mnist, save_dir, 3 * rounds),
            "memory": lambda: steps.kept_memory(rounds),
            "folder": lambda: loading.folder_loading(images, rounds),
            "evaluation": lambda: evaluation(mnist, save_dir, rounds),
            "checkpoint": lambda: steps.checkpoint_stall(mnist, save_dir, rounds),
            "start": lambda: loading.start_up(save_dir, rounds),
            "growth": lambda: loading.growth(
                30, epochs.epochs_of(build(epochs.small_config(mnist, save_dir)))
            ),
        }
        if arguments.only and "files" in arguments.only:  # minutes, and a million files
            parts["files"] = lambda: growth.growth_with_files(arguments.data)
        if arguments.only and "peers" in arguments.only:
            parts["peers"] = lambda: peers.peers(
                arguments.data / "neu_surface_defects", save_dir, rounds
            )
        if arguments.only and "camera" in arguments.only:
            cats = arguments.data / "cats_vs_dogs_192"
            parts["camera"] = lambda: peers.peers(
                peers.camera_images(cats, save_dir / "camera"), save_dir, rounds, epochs=4
            )
        if arguments.only and "cpu" in arguments.only:  # compiling takes minutes
            parts["cpu"] = lambda: cpu.ways_to_compute(rounds)
        if arguments.gpu:
            parts = {
                "networks": lambda: gpu.networks(mnist, save_dir, rounds),
                "cifar": lambda: gpu.cifar(arguments.data, save_dir),
                "folder": parts["folder"],
                "processes": lambda: gpu.two_processes(arguments.data, save_dir, 1),
            }
        figures = {}
        for name, run in parts.items():
            if arguments.only is None or name in arguments.only:
                figures |= show(run())
    result = {"machine": measure.machine(), "date": str(datetime.date.today()), "figures": figures}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{result['machine']}, {result['date']}; written: {arguments.out}")


def show(figures: dict[str, float]) -> dict[str, float]:
    for name, value in figures.items():
        print(f"{name:48} {value:12,.3f}", flush=True)
    return figures


if __name__ == "__main__":
    main()
