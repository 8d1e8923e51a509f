"""A run's folders, and run.json in them, which says what the run is. Imports no torch."""

import contextlib
import datetime
import json
from pathlib import Path

from utils.files import numbered

BEST = "model_best.pth"
RUN_FILE = "run.json"


def new_run_dir(root: Path, name: str, run_id: str | None = None, kind: str = "models") -> Path:
    """Make root/<kind>/<name>/<run_id>, by default <mmdd_HHMMSS>; a second such one gets -2."""
    parent = Path(root) / kind / name
    parent.mkdir(parents=True, exist_ok=True)
    for folder in numbered(parent / (run_id or datetime.datetime.now().strftime("%m%d_%H%M%S"))):
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def run_of(file: Path) -> Path:
    """The folder of the run that a checkpoint or an exported file belongs to."""
    places = file.absolute().parents[:3]
    return next((place for place in places if (place / "config.json").exists()), places[0])


def log_dir_for(run: Path) -> Path:
    """A run's log folder: saved/log/<name>/<id> for saved/models/<name>/<id>, else log/ in it."""
    run = Path(run) if len(Path(run).parts) > 2 else Path(run).absolute()
    if run.parent.parent.name == "models":
        return run.parents[2] / "log" / run.parent.name / run.name
    return run / "log"


def read_run_file(run: Path) -> dict:
    """The content of run.json; empty if there is none, as before December 2026."""
    return read_json(run / RUN_FILE)


def read_json(file: Path) -> dict:
    """The object in a file; empty if there is no such file, or it holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
