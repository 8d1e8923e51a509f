"""How the time and the memory of a start grow with the number of images, from 1,000 to 1,000,000.

The images are tiny (8 pixels), so that it is not the decoder that is measured. They are made once,
in DATA/growth.
"""

import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.conftest import ROOT

SIDE, BATCH = 8, 64
MEASURE = """
import json, sys, time
from itertools import islice
begun = time.perf_counter()
from data_loader.image_folder import ImageFolderDataLoader
from tests.benchmarks.growth import memory
imported = time.perf_counter()
settings = {"image_size": 8, "batch_size": 64, "normalize": "data", "seed": 1}
loader = ImageFolderDataLoader(sys.argv[1], num_workers=0, **settings)
loader.check()
next(iter(loader))
result = {"start, s": time.perf_counter() - imported, "memory, MB": memory("VmHWM")}
loader.set_epoch(2)
begun = time.perf_counter()
next(iter(loader.sampler))
result["order of an epoch, s"] = time.perf_counter() - begun
begun = time.perf_counter()
next(loader.batches(3 * len(loader) // 2))
result["resume in mid-epoch, s"] = time.perf_counter() - begun
loader.set_workers(1)
for _ in islice(iter(loader), 200):
    pass
early = memory("Private_Dirty", loader._iterator._workers[0].pid)
for _ in islice(iter(loader), 1500):
    pass
late = memory("Private_Dirty", loader._iterator._workers[0].pid)
result |= {"a worker's own memory, MB": late, "  its growth in 1500 batches, MB": late - early}
loader.end_workers()
print(json.dumps(result))
"""


def memory(kind: str, process: int | str = "self") -> float:
    """MB: "VmHWM", the most there was; "Private_Dirty", what no other process has, and no file."""
    file = "status" if kind == "VmHWM" else "smaps_rollup"
    lines = Path(f"/proc/{process}/{file}").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def make(folder: Path, count: int, classes: int) -> None:
    """Images of noise: nine tenths in train, the others in val."""
    size = SIDE * SIDE * 3
    header = b"BM" + struct.pack("<IHHI", 54 + size, 0, 0, 54)
    header += struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 24, 0, size, 2835, 2835, 0, 0)
    generator = np.random.default_rng(count)
    for part, wanted in (("train", count * 9 // 10), ("val", count // 10)):
        for number in range(classes):
            (folder / part / f"class{number:05}").mkdir(parents=True)
        for number in range(wanted):
            pixels = generator.integers(0, 256, size, np.uint8).tobytes()
            place = folder / part / f"class{number % classes:05}" / f"{number:07}.bmp"
            place.write_bytes(header + pixels)


def growth_with_files(data: Path, largest: int = 1_000_000) -> dict[str, float]:
    """Each figure for each number of images, and by which power of the number it grows."""
    found: dict[int, dict[str, float]] = {}
    counts = [count for count in (1_000, 10_000, 100_000, 1_000_000) if count <= largest]
    for count in counts:
        folder = data / "growth" / str(count)
        if not folder.exists():
            make(folder, count, classes=min(1_000, count // 100))
        for kind in ("first", "later"):  # the first start reads all images
            command = [sys.executable, "-c", MEASURE, str(folder)]
            result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            values = json.loads(result.stdout.splitlines()[-1])
            if kind == "later":
                found[count] = values
    figures = {}
    for name in found[counts[0]]:
        for count in counts:
            figures[f"{name}, {count:,} images"] = found[count][name]
        few, many = found[counts[-2]][name], found[counts[-1]][name]
        if few > 0 < many:
            figures[f"{name}: grows with the power"] = math.log10(many / few)
    return figures
