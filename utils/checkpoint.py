"""Checkpoints and run folders on disk: plain data, written atomically, found again."""

import datetime
import glob
import itertools
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils import onnx_file
from utils.errors import CheckpointError, RunError, UserError

BEST = "model_best.pth"
NUMBERED = r"checkpoint-epoch(\d+)\.pth"
_KEYS = ("arch", "epoch", "state_dict", "config")


def new_run_dir(root: Path, name: str) -> Path:
    """Make root/models/<name>/<mmdd_HHMMSS>; a run that starts in the same second gets a -2 behind it."""
    stamp = datetime.datetime.now().strftime("%m%d_%H%M%S")
    for suffix in itertools.chain([""], (f"-{n}" for n in itertools.count(2))):
        folder = Path(root) / "models" / name / f"{stamp}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not folder.is_dir():
                raise
        else:
            return folder
    raise AssertionError("unreachable")


def log_dir_of(run: Path) -> Path:
    """Where a run keeps its logs: saved/log/<name>/<id> for saved/models/<name>/<id>, else log/ inside it."""
    run = Path(run) if len(Path(run).parts) > 2 else Path(run).absolute()
    if run.parent.parent.name == "models":
        return run.parents[2] / "log" / run.parent.name / run.name
    return run / "log"


def save(state: dict, path: Path) -> None:
    """Write `state` so that `path` holds either the old file or the whole new one, also if power fails.

    Of several processes only the first writes; here, in `keep_last` and in `set_aside` the others do nothing.
    """
    import torch

    from utils import distributed

    if not distributed.is_first():
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except RuntimeError as error:  # what torch makes of a disk that is full
        raise RunError(f"{path} could not be written, is the disk full? ({str(error).splitlines()[0]})") from error
    finally:
        temporary.unlink(missing_ok=True)


def copy(path: Path, target: Path) -> None:
    """A second file that holds the same, in its place all at once."""
    from utils import distributed

    if distributed.is_first():
        save(load(path), target)


def load(path: Path) -> dict:
    """Read a checkpoint onto the CPU, or what an exported file says in its place. Raises CheckpointError where it is
    damaged or none of ours."""
    if Path(path).suffix == onnx_file.SUFFIX:
        return onnx_file.load(path)
    state = load_file(path)
    missing = [key for key in _KEYS if key not in state] if isinstance(state, dict) else _KEYS
    if missing:
        raise CheckpointError(f"{path} is no checkpoint of this project: it lacks {', '.join(missing)}")
    if not isinstance(state["config"], dict):
        raise CheckpointError(f"{path}: its config is no plain data")
    return state


def amend(path: Path, state: dict, **changes: Any) -> None:
    """Change some of what the file `path` holds, which `load` read as `state`; it stays as old as it is."""
    modified = path.stat().st_mtime
    if path.suffix == onnx_file.SUFFIX:
        onnx_file.amend(path, **changes)
    else:
        save(state | changes, path)
    os.utime(path, (modified, modified))  # "the newest run" means the one trained last


def load_file(path: Path) -> Any:
    """What torch.save wrote into `path`, by whomever, if it is plain data. Raises CheckpointError."""
    import torch

    try:
        # torch reads a file with flipped bits without a word; its checksums are there, zipfile looks at them
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise CheckpointError(f"{path} is damaged, in {damaged}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except Exception as error:  # torch raises seven kinds, by where the damage is
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason}") from error


def find(path: Path, best: bool = False) -> tuple[Path, dict]:
    """The checkpoint that `path` means, a file or a run's folder, and what it holds.

    Of a folder the newest is taken (with `best`: the best, where there is one), and where that is damaged,
    with a warning, the one before. Raises CheckpointError.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint or run folder {path}")
    if not path.is_dir():
        return path, load(path)
    candidates = list(of_run(path))
    best_file = path / BEST
    if best_file.exists():
        candidates = [best_file, *candidates] if best else [*candidates, best_file]
    if not candidates:
        raise CheckpointError(f"{path} holds no checkpoint (checkpoint-epoch<N>.pth or {BEST})")
    damage = []
    for candidate in candidates:
        try:
            state = load(candidate)
        except CheckpointError as error:
            damage.append(str(error))
            continue
        for message in damage:
            print(f"warning: {message}; taking {candidate.name}", file=sys.stderr)
        return candidate, state
    raise CheckpointError("; ".join(damage))


def of_run(run: Path) -> Iterator[Path]:
    """A run's numbered checkpoints, the latest epoch first."""
    numbered = {int(m[1]): p for p in Path(run).iterdir() if (m := re.fullmatch(NUMBERED, p.name))}
    return (numbered[epoch] for epoch in sorted(numbered, reverse=True))


def place_of(path: Path) -> Path:
    """The folder for what is made of a file: that where it is; for a checkpoint of another name than a run's numbered ones
    and its best, a step of pruning say, one of its own there: prune/step2/ for prune/step2.pth."""
    others = path.suffix in (".pth", ".pt") and path.name != BEST and not re.fullmatch(NUMBERED, path.name)
    return path.with_suffix("") if others else path.parent


def newest_run(root: Path, name: str | None = None) -> Path:
    """The run folder below `root` with the latest checkpoint, of that name or of any. Raises UserError."""
    runs: dict[Path, float] = {}
    for file in (Path(root) / "models").glob(f"{glob.escape(name) if name else '*'}/*/*.pth"):
        if not file.name.startswith("."):
            runs[file.parent] = max(runs.get(file.parent, 0), file.stat().st_mtime)
    if not runs:
        raise UserError(f"there is no run to resume in {Path(root) / 'models' / (name or '')}")
    return max(runs, key=lambda run: runs[run])


def keep_last(run: Path, count: int | None) -> None:
    """Delete all but the `count` latest numbered checkpoints; none where that is None."""
    from utils import distributed

    if count is not None and distributed.is_first():
        for old in itertools.islice(of_run(run), count, None):
            old.unlink()


def set_aside(run: Path, epoch: int) -> list[Path]:
    """Move checkpoints later than `epoch` into the folder replaced/, for a run that goes on from there.

    Left in place they would be taken for the newest state; so is a best that cannot be read. Returns what was moved.
    """
    from utils import distributed

    if not distributed.is_first():
        return []
    stale = [path for path in of_run(run) if int(path.stem.removeprefix("checkpoint-epoch")) > epoch]
    best = run / BEST
    if best.exists() and _epoch_of(best) > epoch:
        stale.append(best)
    moved = []
    for path in stale:
        target = run / "replaced" / path.name
        target.parent.mkdir(exist_ok=True)
        number = itertools.count(2)
        while target.exists():
            target = target.with_name(f"{path.stem}-{next(number)}{path.suffix}")
        shutil.move(path, target)
        moved.append(target)
    return moved


def _epoch_of(path: Path) -> float:
    try:
        return load(path)["epoch"]
    except CheckpointError:
        return float("inf")
