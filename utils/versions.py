import functools
import platform
import shutil
import subprocess

from utils.lookup import ROOT


@functools.cache
def versions() -> dict[str, str | None]:
    """What a run was made with: Python, torch, and the project's git commit ("+" behind it: with changes), if it has one."""
    import torch

    return {"python": platform.python_version(), "torch": str(torch.__version__), "git": _commit()}


def _commit() -> str | None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10
        ).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return (commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")) or None
    except (OSError, subprocess.SubprocessError):
        return None
