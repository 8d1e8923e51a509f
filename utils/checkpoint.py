"""Checkpoints and run folders on disk: plain data, written atomically, found again."""

import contextlib
import functools
import glob
import importlib
import itertools
import logging
import math
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from utils import lock
from utils.contents import TYPES, find_fault
from utils.engine import distributed
from utils.errors import CheckpointError, RunError, UserError, first_line
from utils.files import ROOT, atomic_write, numbered, remove_leftovers, shell_command
from utils.origin import origin
from utils.run_folder import BEST, read_json

NUMBERED = r"checkpoint-epoch(\d+)\.pth"
TESTED = r"(?:result|report|predictions|wrong_images)(_val|_train|)(?:-\d+)?(?:\.\w+)?"  # in test/
SUFFIXES = ".pth", ".pt"
KEYS = "arch", "epoch", "state_dict", "config"


# What pytorch-template's checkpoints hold beside plain data; its config becomes a dict.
IGNORED = ("parse_config.ConfigParser", "pathlib.PosixPath", "pathlib.WindowsPath",
           "pathlib._local.PosixPath", "pathlib._local.WindowsPath", "numpy.dtype",
           "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # fmt: skip


class Ignored:
    """Stands for an object in a file, with what describes it; nothing of its class is imported."""

    def __init__(self, *args: object):
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class FileFormat(Protocol):
    """How to use files of another format like checkpoints.

    A folder's formats.py declares them by suffix: `READERS: dict[str, FileFormat]`.
    """

    def load(self, path: Path) -> dict:
        """What a checkpoint would hold (see `load`). Raises CheckpointError."""

    def amend(self, path: Path, **changes: object) -> None:
        """Replace some of what `load` returns, in the file."""

    def network(self, path: Path, state: dict, threads: int) -> nn.Module:
        """The file's network, which computes with so many threads; `load` returned `state`."""


def reader_for(path: Path) -> FileFormat | None:
    """The format of `path` by its suffix; None means that only torch.load may read it."""
    if path.suffix not in SUFFIXES:
        for file in sorted(ROOT.glob("*/formats.py")):
            readers = importlib.import_module(f"{file.parent.name}.formats").READERS
            if path.suffix in readers:
                return readers[path.suffix]
    return None


def save(state: dict, path: Path) -> None:
    """Write `state` atomically: `path` holds the old checkpoint or the complete new one.

    Its record of origin gets the digest. If another network was in `path`, what was made from that
    is moved to the folder replaced/. Only the main process writes; here, in `keep_last` and in
    `set_aside` the others do nothing.
    """
    if not distributed.is_main():
        return
    state = state | {"origin": origin(state)}
    has_derived = path.exists() and any(_derived(path))
    before = read_origin(path) if has_derived else state["origin"]
    try:
        with atomic_write(path) as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch's error for a full disk
        reason = first_line(error)
        raise RunError(f"{path} could not be written, is the disk full? ({reason})") from error
    if before is None or before["digest"] != state["origin"]["digest"]:
        _set_derived_aside(path)


def copy(path: Path, target: Path) -> None:
    """Copy a checkpoint, written atomically like any other."""
    if distributed.is_main():
        save(load(path), target)


def load(path: Path) -> dict:
    """Read a checkpoint onto the CPU, or what a file of another format holds in its place.

    Raises CheckpointError if the file is damaged, or is not a checkpoint of this template.
    """
    path = Path(path)
    if reader := reader_for(path):
        return reader.load(path)
    state = load_file(path)
    missing = ", ".join(key for key in KEYS if not isinstance(state, dict) or key not in state)
    if missing:
        raise CheckpointError(f"{path} is not a checkpoint of this template: it lacks {missing}")
    state = dict.fromkeys(("classes", "input", "ema"), None) | state
    if isinstance(state["config"], Ignored):  # pytorch-template's ConfigParser
        attributes = getattr(state["config"], "state", None)
        state["config"] = attributes["_config"] if isinstance(attributes, dict) else None
    if fault := find_fault(state, TYPES):
        raise CheckpointError(f"{path} is damaged, or of another program: {fault}")
    return state


def amend(path: Path, state: dict, **changes: object) -> None:
    """Change some values of the file `path`, from which `load` read `state`; its time stays.

    If a running training has replaced it since, it is left alone, with a warning.
    """
    modified, now = path.stat().st_mtime, load(path)
    if origin(now)["digest"] != origin(state)["digest"]:
        logging.getLogger("checkpoint").warning(f"{path} was replaced meanwhile and stays as it is")
        return
    if reader := reader_for(path):
        reader.amend(path, **changes)
    else:
        save(now | changes, path)
    os.utime(path, (modified, modified))  # "the newest run" means the one trained last


def load_file(path: Path) -> Any:
    """Read what torch.save wrote, in any program, if it is plain data. Raises CheckpointError."""
    try:
        # torch does not notice flipped bits; zipfile compares the checksums
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} is damaged")
        with torch.serialization.safe_globals([(Ignored, name) for name in IGNORED]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except Exception as error:  # torch raises seven types, depending on where the damage is
        found = re.search(r"GLOBAL ([\w.]+) was not an allowed", str(error))
        reason = f"the file is damaged or of another kind ({first_line(error)[:80]})"
        if found:
            reason = f"it contains an object of Python, {found[1]}, not only plain data"
        if path.suffix not in SUFFIXES:
            reason = f"nothing in this project reads {path.suffix or 'files without suffix'}"
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason}") from error


def load_into(network: nn.Module, weights: Mapping[str, Any], source: str) -> None:
    """Load weights; each must fit, and none may be missing.

    Raises CheckpointError, which names `source` and says how many do not fit, with examples; some
    may be loaded by then.
    """
    own, cls = network.state_dict(), type(network).__name__
    resized = [n for n in own if n in weights and _size(own[n]) != _size(weights[n])]
    missing, unknown = ([n for n in a if n not in b] for a, b in ((own, weights), (weights, own)))
    if not resized:  # torch itself knows older names, and what may be missing
        missing, unknown = network.load_state_dict(weights, strict=False)
    if missing or unknown:
        raise CheckpointError(
            f"{source} holds another network than {cls}: {len(missing)} of {len(own)} tensors are "
            f"missing and {len(unknown)} unknown, for example "
            f"{', '.join(missing[:2] + unknown[:2])}; {len(resized)} differ in size"
        )
    for name in resized:
        raise CheckpointError(
            f"{source} does not fit {cls}: {name} is {_size(weights[name])} there and "
            f"{_size(own[name])} here; {len(resized)} of {len(own)} tensors differ in size"
        )


def _size(tensor: Any) -> list[int] | None:
    return list(tensor.shape) if isinstance(tensor, torch.Tensor) else None


def find(path: Path, best: bool = False) -> tuple[Path, dict]:
    """The checkpoint that `path` means, a file or a run folder, and its content.

    In a folder this is the newest state (with `best`: the best, if there is one); if that is
    damaged, the one before, with a warning. Raises CheckpointError.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint or run folder {path}")
    if not path.is_dir():
        return path, load(path)
    errors: list[str] = []
    numbered = _readable(numbered_checkpoints(path), errors)
    bests = _readable(filter(Path.exists, [path / BEST]), errors)
    if best:
        candidates = itertools.islice(itertools.chain(bests, numbered), 1)
    else:
        candidates = itertools.chain(itertools.islice(numbered, 1), bests)
    found = max(candidates, key=lambda file: _progress(file[1]), default=None)
    if found is None:
        none = f"{path} holds no checkpoint (checkpoint-epoch<N>.pth or {BEST})"
        if inside := sorted({file.parent for file in path.glob(f"*/{BEST}")}):
            none += f"; pass a folder in it, {shell_command('-r', inside[-1])}"
        raise CheckpointError("; ".join(errors) or none)
    for message in errors:
        print(f"warning: {message}; taking {found[0].name}", file=sys.stderr)
    return found


def _readable(paths: Iterable[Path], errors: list[str]) -> Iterator[tuple[Path, dict]]:
    """The checkpoints that can be read, each with its content; the reasons of the others."""
    for path in paths:
        try:
            yield path, load(path)
        except CheckpointError as error:
            errors.append(str(error))


def _progress(state: dict) -> tuple[int, float]:
    """Larger for a later state of a run; an epoch's end has step 0."""
    step = state["trainer"]["step"] if isinstance(state.get("trainer"), dict) else 0
    return state["epoch"], step or math.inf


def numbered_checkpoints(run: Path) -> Iterator[Path]:
    """A run's numbered checkpoints, the latest epoch first."""
    epochs = {int(m[1]): p for p in Path(run).iterdir() if (m := re.fullmatch(NUMBERED, p.name))}
    return (epochs[epoch] for epoch in sorted(epochs, reverse=True))


def output_dir(path: Path) -> Path:
    """The folder for what is made from a file: its own folder.

    A checkpoint that is neither numbered nor the best gets a folder of its name there: parts/a/
    for parts/a.pth.
    """
    usual = path.suffix not in SUFFIXES or path.name == BEST or re.fullmatch(NUMBERED, path.name)
    return path.parent if usual else path.with_suffix("")


def newest_run(root: Path, name: str | None = None, to_train: bool = False) -> Path:
    """The run folder below `root` with the latest checkpoint, of this name if one is given.

    Raises UserError if there is none, or `to_train` and a process trains it: to take an older one
    in its place would change a run that nobody meant.
    """
    models = Path(root) / "models"
    found = models.glob(f"{glob.escape(name) if name else '*'}/*/*.pth")
    files = [file for file in found if file.name == BEST or re.fullmatch(NUMBERED, file.name)]
    files.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    runs = list(dict.fromkeys(file.parent for file in files))
    if not runs:
        raise UserError(f"there is no run to resume in {models / (name or '')}")
    if to_train and not lock.is_free(runs[0]):
        free = next((run for run in runs if lock.is_free(run)), None)
        other = f"; for {free} pass {shell_command('-r', free)}" if free else ""
        raise UserError(f"{runs[0]}, the newest run, is being trained{other}")
    return runs[0]


def keep_last(run: Path, count: int | None) -> None:
    """Delete all but the `count` latest numbered checkpoints; None keeps all."""
    if count is not None and distributed.is_main():
        for old in itertools.islice(numbered_checkpoints(run), count, None):
            old.unlink()


def set_aside(run: Path, epoch: int) -> list[Path]:
    """Move checkpoints later than `epoch` to the folder replaced/; returns their new paths.

    For a run that is resumed from `epoch`: later it would take them for its newest state. A best
    checkpoint that cannot be read is moved too. Unfinished files of a killed process are deleted.
    """
    if not distributed.is_main():
        return []
    remove_leftovers(run)
    files = [file for file in (*numbered_checkpoints(run), run / BEST) if file.exists()]
    later = [file for file in files if _epoch(file) > epoch]
    moved = [_move_to_replaced(file, run) for file in later]
    if later:
        _set_derived_aside(later[-1])
    return moved


def _epoch(path: Path) -> float:
    if number := re.fullmatch(NUMBERED, path.name):
        return int(number[1])
    try:
        return load(path)["epoch"]
    except CheckpointError:
        return float("inf")


def origin_beside(file: Path, source: Path, state: dict) -> dict:
    """The record for a report or an exported `file`, made from `source`, which holds `state`.

    It is that of `source`, and "checkpoint": the path to `source` from the folder of `file`.
    """
    source, folder = source.resolve(), file.resolve().parent
    path = os.path.relpath(source, folder) if source.drive == folder.drive else source
    return origin(state) | {"checkpoint": Path(path).as_posix()}


def read_origin(file: Path, with_config: bool = False) -> dict | None:
    """The record in a checkpoint, an exported file or a JSON report; None if there is none.

    `with_config` adds the checkpoint's "config", for a record that outlives it.
    """
    if file.suffix == ".json":
        return read_json(file).get("origin")
    try:
        state = load(file)
        record = origin(state) if state.get("state_dict") else state.get("origin")
        return record | {"config": state["config"]} if record and with_config else record
    except (OSError, ValueError, ImportError, CheckpointError):
        return None


def outdated(file: Path, record: dict | None) -> str | None:
    """Why `file` does not show the checkpoint that its `record` names, as it is now; or None."""
    if record is None:
        return f"{file} does not name its checkpoint, so it was not compared with that"
    source = file.parent / record["checkpoint"]
    if not source.exists():
        return f"{file} was made from {source.name}, which is no longer there"
    if (read_origin(source) or {}).get("digest") != record["digest"]:
        return f"{file} was made from an earlier {source.name}, not from the one that is there now"
    return None


def _derived(path: Path) -> Iterator[tuple[Path, Path]]:
    """What may be made from the checkpoint `path`, each with the file that has its record."""
    folder = output_dir(path)
    for file in (*folder.glob("*"), *path.parent.glob(f"{glob.escape(path.stem)}.*")):
        if reader_for(file):
            yield file, file
        elif file.name == "export.json" or file.name.startswith("model."):
            yield file, folder / "export.json"
    for file in (*folder.glob("compare"), *sorted(folder.glob("test/*"))):
        split = re.fullmatch(TESTED, file.name)
        inside = next(file.glob("*.json"), file)
        yield file, file.with_name(f"result{split[1]}.json") if split else inside


def _set_derived_aside(path: Path) -> None:
    """Move what was made from earlier checkpoints to the folder replaced/, and log it in a line.

    What has no record was made from `path`, unless that is a numbered checkpoint.
    """
    moved, is_numbered = [], re.fullmatch(NUMBERED, path.name)

    @functools.cache  # asked before the first file of a group is moved
    def is_outdated(described_in: Path) -> bool:
        record = read_origin(described_in)
        return not (record is None and is_numbered) and outdated(described_in, record) is not None

    # one after the other: a report on a file that has just been moved is outdated, too
    for file, described_in in _derived(path):
        if is_outdated(described_in):
            with contextlib.suppress(OSError):  # in use; who reads it is told
                _move_to_replaced(file, path.parent)
                moved.append(file.relative_to(path.parent).as_posix())
    if moved:
        names, folder = ", ".join(sorted(moved)), path.parent / "replaced"
        message = f"{path.name} was replaced: moved what was made from it to {folder}: {names}"
        logging.getLogger("checkpoint").warning(message)


def _move_to_replaced(path: Path, run: Path) -> Path:
    target = run / "replaced" / path.relative_to(run)
    target = next(free for free in numbered(target) if not free.exists())
    target.parent.mkdir(parents=True, exist_ok=True)
    return shutil.move(path, target)
