"""What it costs to open a file, measured in a process of its own:  python -m exporter.startup FILE

The process loads the runtime but not torch, and answers zeros once. Prints JSON: "start_ms", to
open the file and to answer for the first time, and "memory_mb", by how much that enlarged the
process at most, None where the system does not say.
"""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from exporter import onnx_file
from utils.files import ROOT


def measure_startup(
    path: Path, batch: dict[str, np.ndarray], runtime: str | None
) -> dict[str, float | None]:
    """Measure an .onnx file for such a batch; values are None for other files, or if it fails.

    `runtime` is that of its metadata.
    """
    shapes = {name: [list(part.shape), str(part.dtype)] for name, part in batch.items()}
    words = str(path.resolve()), json.dumps(shapes), runtime or ""
    command = [sys.executable, "-m", "exporter.startup", *words]
    if path.suffix == onnx_file.SUFFIX:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            return json.loads(result.stdout)
    return {"start_ms": None, "memory_mb": None}


def main(path: Path, shapes: dict[str, list], runtime: str) -> None:
    # not counted: it is loaded once, whatever the file
    importlib.import_module(runtime or "onnxruntime")
    batch = {name: np.zeros(*shape) for name, shape in shapes.items()}
    open_file = onnx_file.openvino_runner if runtime == onnx_file.OPENVINO else onnx_file.runner
    before, start_time = peak_memory(), time.perf_counter()
    open_file(path)(batch)
    milliseconds, after = (time.perf_counter() - start_time) * 1000, peak_memory()
    memory = None if before is None else (after - before) / 2**20
    print(json.dumps({"start_ms": milliseconds, "memory_mb": memory}))


def peak_memory() -> float | None:
    """The largest size of this process so far, in bytes; None where Linux does not say."""
    # not getrusage: there a process starts with the size of the one that started it
    try:
        words = Path("/proc/self/status").read_text().split()
        return int(words[words.index("VmHWM:") + 1]) * 1024
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3])
