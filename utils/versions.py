import functools
import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path

import torch

from utils.files import ROOT

CPU_INFO = Path("/proc/cpuinfo")  # of Linux


@functools.cache
def versions() -> dict[str, str | None]:
    """The versions of Python, torch and the project (its git commit; "+" means with changes)."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "git": _commit()}


def environment(device: torch.device) -> dict[str, str | int | None]:
    """What else the bits of a result depend on: libraries, system, processor, threads, GPU."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        **versions(),
        **{name: importlib.metadata.version(name) for name in ("torchvision", "numpy")},
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": gpu and f"{gpu}, CUDA {torch.version.cuda}",
    }


def _processor() -> str:
    text = CPU_INFO.read_text(encoding="utf-8", errors="replace") if CPU_INFO.exists() else ""
    name = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return name[1] if name else platform.processor()


def _commit() -> str | None:
    if not (ROOT / ".git").exists():  # inside another repository: that one's commit says nothing
        return None
    describe = ["git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
    try:
        result = subprocess.run(describe, cwd=ROOT, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):  # git is missing or hangs
        return None
    return result.stdout.decode().strip() or None
