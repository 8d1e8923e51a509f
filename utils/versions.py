import functools
import platform
import subprocess

from utils.files import ROOT


@functools.cache
def versions() -> dict[str, str | None]:
    """The versions of Python, torch and the project (its git commit; "+" means with changes)."""
    import torch

    return {"python": platform.python_version(), "torch": str(torch.__version__), "git": _commit()}


def _commit() -> str | None:
    if not (ROOT / ".git").exists():  # inside another repository: that one's commit says nothing
        return None
    describe = ["git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
    try:
        result = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):  # git is missing or hangs
        return None
    return result.stdout.strip() or None
