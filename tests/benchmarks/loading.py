"""Pictures a second and core from a folder, and what a command does before its first step."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from data_loader.image_folder import ImageFolderDataLoader
from tests.benchmarks.measure import in_turn
from tests.conftest import ROOT
from utils.engine.engine import keep_freed_memory

SIDE = 224
BASELINE = "import torch; torch.optim.Adam(torch.nn.Linear(1, 1).parameters())"
# Ends the process where its first optimizer step is done.
FIRST_STEP = """
import os, sys
import train
from utils.engine.engine import Engine
step = Engine.optimizer_step
def stop(*args):
    step(*args)
    os._exit(0)
Engine.optimizer_step = stop
folders = ["trainer.save_dir=" + sys.argv[2], "data_loader.args.data_dir=" + sys.argv[2]]
train.main(["-c", sys.argv[1], "-s", *folders])
"""


def folder_loading(data_dir: Path, rounds: int) -> dict[str, float]:
    """Training images of `data_dir`, RandomResizedCrop to 224, flip, normalised, on one core;
    batches of 32.
    """
    keep_freed_memory()  # as every engine does; for both ways
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cached = build_eval_loader(data_dir)
        count = len(cached.dataset)
        later = {
            "torchvision": lambda: consume(torchvisions(data_dir)),
            "later": lambda: consume(cached),
        }
        first = {
            "torchvision": later["torchvision"],
            "first": lambda: consume(build_eval_loader(data_dir)),
        }
        with one_core():
            one, two = in_turn(rounds, later), in_turn(rounds, first, warm_up=0)
    finally:
        torch.set_num_threads(before)
    return {
        "images/s per core, ImageFolder": count / one.median("torchvision"),
        "  ours, first epoch": count / two.median("first"),
        "  ours, later epochs": count / one.median("later"),
        "  first epoch / ImageFolder": two.ratio("torchvision", "first"),
        "  later epochs / ImageFolder": one.ratio("torchvision", "later"),
    }


def build_eval_loader(data_dir: Path) -> ImageFolderDataLoader:
    return ImageFolderDataLoader(
        str(data_dir), image_size=SIDE, transforms="imagenet", batch_size=32, cache="ram"
    )


def torchvisions(data_dir: Path) -> DataLoader:
    """As in torchvision's reference for training."""
    from torchvision import datasets, transforms

    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    augmentation = [transforms.RandomResizedCrop(SIDE), transforms.RandomHorizontalFlip()]
    transform = transforms.Compose([*augmentation, transforms.ToTensor(), normalize])
    return DataLoader(datasets.ImageFolder(str(data_dir / "train"), transform), 32, shuffle=True)


def consume(loader: Any) -> None:
    for _ in loader:
        pass


class one_core:  # noqa: N801
    """Inside, the process uses one core, if the system can restrict it."""

    def __enter__(self) -> None:
        self.cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        if self.cores:
            os.sched_setaffinity(0, {min(self.cores)})

    def __exit__(self, *exception: object) -> None:
        if self.cores:
            os.sched_setaffinity(0, self.cores)


def start_up(save_dir: Path, rounds: int) -> dict[str, float]:
    """Whole processes: --help, a faulty config, the default config until its first step is done."""
    faulty = save_dir / "faulty.json"
    faulty.write_text(
        '{"extends": "%s", "optimizer": {"type": "Adam", "args": {"learning_rate": 1}}}'
        % (ROOT / "config.json")
    )
    python, config = sys.executable, str(ROOT / "config.json")
    commands = {
        "import": [python, "-c", "import torch"],
        "baseline": [python, "-c", BASELINE],
        "help": [python, "train.py", "--help"],
        "fault": [python, "train.py", "-c", str(faulty)],
        "first step": [python, "-c", FIRST_STEP, config, str(save_dir)],
    }
    timings = in_turn(
        rounds,
        {name: lambda command=command: silent(command) for name, command in commands.items()},
    )
    return {
        "train.py --help, s": timings.median("help"),
        "import torch, s": timings.median("import"),
        "  a config's fault / import torch": timings.ratio("fault", "import"),
        "import torch and an optimizer, s": timings.median("baseline"),
        "  default config to its first step / that": timings.ratio("first step", "baseline"),
    }


def silent(command: list[str]) -> None:
    subprocess.run(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )


def growth(epochs: int, run_epoch: Any) -> dict[str, float]:
    """Memory and time of a late epoch over those of an early one."""
    memory, seconds = {}, []
    for epoch in range(1, epochs + 1):
        begun = time.perf_counter()
        run_epoch()
        seconds.append(time.perf_counter() - begun)
        memory[epoch] = resident_memory()
    return {
        "memory after the third epoch, MB": memory[3] / 2**20,
        f"  after epoch {epochs} / after epoch 3": memory[epochs] / memory[3],
        f"  seconds of the last 5 epochs / of 3 to {min(7, epochs)}": statistics.median(
            seconds[-5:]
        )
        / statistics.median(seconds[2:7]),
    }


def resident_memory() -> int:
    """Bytes of this process in memory now; the most there ever were, where the system does not
    tell.
    """
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
