"""Start a project of your own:  python new_project.py ../MyProject

Copies the template into a new folder, without git, caches, data and what runs left behind. With --from RUN
the project starts from a finished run: its configuration becomes config.json, and its best weights come along.
"""

import argparse
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

from utils import config_file
from utils.errors import UserError

TEMPLATE = Path(__file__).resolve().parent
LEFT_OUT = (".*", "__pycache__", "*.pyc", "data", "saved", "venv", "docs", "README*", "node_modules")
README = """# {name}

Made from Kata, a PyTorch project template.

    pip install -r requirements.txt && {train}
    pip install -r requirements-dev.txt && python -m pytest

Write your loader in `data_loader/`, your network, loss and metrics in `model/`, and name them in `config.json`.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", metavar="DEST", type=Path, help="the new folder; its name becomes the project's")
    parser.add_argument("--from", dest="run", metavar="RUN", type=Path, help="a run's folder or checkpoint to start from")
    arguments = parser.parse_args(argv)
    try:
        found = find_run(arguments.run) if arguments.run else None  # before anything is written
        copy_template(arguments.dest)
        weights = copy_run(*found, arguments.dest) if found else None
    except (UserError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    command = "python train.py -c config.json" + (f" -r {shlex.quote(weights.as_posix())}" if weights else "")
    name = arguments.dest.resolve().name
    (arguments.dest / "README.md").write_text(README.format(name=name, train=command), encoding="utf-8")
    print(f"{arguments.dest} is ready:\n  cd {shlex.quote(str(arguments.dest))} && {command}")
    return 0


def copy_template(dest: Path) -> None:
    """Copy the template to `dest`. Raises UserError where that would mix it with something else."""
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UserError(f"{dest} is not empty; name a folder that does not exist yet")
    if dest.resolve().is_relative_to(TEMPLATE):
        raise UserError(f"{dest} is inside the template; name a folder beside it, like ../{dest.name}")
    shutil.copytree(TEMPLATE, dest, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True)
    for kept in (".gitignore", ".ci/run", "docs/config.schema.json"):
        (dest / kept).parent.mkdir(exist_ok=True)
        shutil.copy2(TEMPLATE / kept, dest / kept)
    (dest / "saved").mkdir()
    (dest / "saved" / ".gitkeep").touch()
    config = dest / "config.json"
    named = re.sub(
        r'("name":\s*)"[^"]*"', lambda m: m[1] + json.dumps(_name(dest)), config.read_text(encoding="utf-8"), count=1
    )
    config.write_text(named, encoding="utf-8")


OF_PRUNING = ("type", "last_epochs", "sparse_epochs", "save_onnx")  # keys of a trainer section


def find_run(run: Path) -> tuple[Path, dict]:
    """The best checkpoint of a run, and what it holds. Raises UserError."""
    from utils import checkpoint

    return checkpoint.find(run, best=True)


def copy_run(path: Path, state: dict, dest: Path) -> Path:
    """Bring a run's configuration and best weights along; returns the weights' path within `dest`.

    What a run has pruned is trained on from there, so the configuration becomes one of training.
    """
    config = {key: value for key, value in state["config"].items() if key not in ("versions", "pruner")}
    if config["trainer"].get("type") == "PruneTrainer":
        config["trainer"] = {key: value for key, value in config["trainer"].items() if key not in OF_PRUNING}
    config_file.write(config | {"name": _name(dest)}, dest / "config.json")
    weights = Path("saved") / "models" / _folder(str(config["name"])) / _folder(path.absolute().parent.name) / path.name
    (dest / weights).parent.mkdir(parents=True)
    shutil.copy2(path, dest / weights)
    return weights


def _name(dest: Path) -> str:
    return _folder(dest.resolve().name)


def _folder(name: str) -> str:
    """`name` as one folder can have it, on any system."""
    return re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", name)[:100].strip(" .") or "run"


if __name__ == "__main__":
    sys.exit(main())
