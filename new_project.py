"""Start a project of your own:  python new_project.py ../MyProject

Copies the template into a new folder, without git, caches, virtual environments, data and what
runs left behind; also without whatever else is large and holds no Python code. With --from RUN the
project starts from a finished run: its configuration becomes config.json, and its best weights come
along. With --data FOLDER config.json is one for the images in that folder. With --without VERB ...
the project does not have those verbs: no file, section or requirement of theirs is left.
"""

import argparse
import importlib
import json
import re
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

from utils.config import config_file
from utils.errors import UserError
from utils.files import safe_name, shell_command
from utils.screen import leave_screen, open_screen

TEMPLATE = Path(__file__).resolve().parent
LEFT_OUT = (".*", "__pycache__", "*.pyc", "*.egg-info", "node_modules")  # wherever they are
OUTER = ("data", "saved", "docs", "README*", "*.pth", "*.pt", "*.onnx", "benchmarks.json")
TESTS_OF_TEMPLATE = ("benchmarks", "examples", "faults", "template")
LARGE = 5_000_000  # bytes
README = """# {name}

Made from Kata, a PyTorch project template.

    pip install -r requirements.txt && {train}
    pip install -r requirements-dev.txt && python -m pytest

Write your loader in `data_loader/`, your network, loss and metrics in `model/`, and name them in
`config.json`.
"""


def main(argv: list[str] | None = None) -> int:
    open_screen()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter  # keeps the lines as they are
    add = parser.add_argument
    add("dest", metavar="DEST", type=Path, help="the new folder; its name becomes the project's")
    add("--from", dest="run", metavar="RUN", type=Path, help="a run or checkpoint to start from")
    add("--trust", action="store_true",
        help="with --from: take along what its config names beyond the template")  # fmt: skip
    add("--data", metavar="FOLDER", help="images, or a table of them, to write config.json for")
    add("--target", metavar="CLASS", help="with --data: the class that must not be missed")
    add("--weights", metavar="FILE",
        help="with --data: trained weights to start from, or torchvision's DEFAULT")  # fmt: skip
    add("--without", metavar="VERB", nargs="+", default=[], choices=sorted(optional_verbs()),
        help=f"leave out: {', '.join(sorted(optional_verbs()))}")  # fmt: skip
    arguments = parser.parse_args(argv)
    dest, folders = arguments.dest, {folder_of(verb) for verb in arguments.without}
    try:
        check_folders(folders)
        # before anything is written
        found = find_run(arguments.run, arguments.trust) if arguments.run else None
        proposed = propose(arguments, _name(dest))
        copy_template(dest, arguments.without)
        if proposed:
            (dest / "config.json").write_text(proposed, encoding="utf-8")
        weights = copy_run(*found, dest, sections_of(folders)) if found else None
    except (UserError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    start = ["-r", weights.as_posix()] if weights else []
    command = shell_command("python", "train.py", "-c", "config.json", *start)
    readme = README.format(name=dest.resolve().name, train=command)
    (dest / "README.md").write_text(readme, encoding="utf-8")
    print(f"{dest} is ready:\n  {shell_command('cd', dest)} && {command}")
    leave_screen()
    return 0


def propose(arguments: argparse.Namespace, name: str) -> str | None:
    """The configuration for --data. Raises UserError if there are no images in it."""
    if arguments.data is None:
        if arguments.target or arguments.weights:
            raise UserError("--target and --weights belong to --data FOLDER")
        return None
    if arguments.run:
        raise UserError("--data and --from give a configuration each: choose one")
    from trainer.proposal import configuration

    data, weights = Path(arguments.data).resolve(), arguments.weights
    if weights and weights != "DEFAULT":
        weights = str(Path(weights).resolve())
    return configuration(data, arguments.target, weights, name, "docs/config.schema.json")


def folder_of(verb: str) -> str:
    """The folder of a verb: its name with -er."""
    return verb + ("r" if verb.endswith("e") else "er")


def optional_verbs() -> set[str]:
    """The scripts that have such a folder, but for the one that trains."""
    scripts = {path.stem for path in TEMPLATE.glob("*.py")} - {"train"}
    return {script for script in scripts if (TEMPLATE / folder_of(script)).is_dir()}


def sections_of(folders: Collection[str]) -> set[str]:
    """The sections of a config that these folders declare."""
    names: set[str] = set()
    for folder in folders:
        module = importlib.import_module(f"{folder}.sections")
        names |= {*getattr(module, "SECTIONS", {}), *getattr(module, "PLAIN", {})}
    return names


def check_folders(folders: Collection[str]) -> None:
    """Raises UserError if a verb that stays uses the folder of one that is left out."""
    for verb in sorted(optional_verbs()):
        if folder_of(verb) in folders:
            continue
        for file in [TEMPLATE / f"{verb}.py", *(TEMPLATE / folder_of(verb)).glob("*.py")]:
            code = file.read_text(encoding="utf-8")
            imported = re.findall(r"^ *(?:from|import) (\w+)", code, re.MULTILINE)
            if used := sorted(folders & set(imported)):
                raise UserError(f"--without: {verb} uses {used[0]}/; leave out {verb}, too")


def copy_template(dest: Path, without: Collection[str] = ()) -> None:
    """Copy the template, without some verbs, to `dest`. Raises UserError if that is not empty."""
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UserError(f"{dest} is not empty; name a folder that does not exist yet")
    if dest.resolve().is_relative_to(TEMPLATE):
        raise UserError(f"{dest} is inside the template; name one beside it, like ../{dest.name}")
    folders = {folder_of(verb) for verb in without}
    sections = sections_of(folders)
    examples = TEMPLATE.glob("configs/*.json")
    by_folder = {
        TEMPLATE: (*OUTER, *folders, *(f"{verb}.py" for verb in without)),
        TEMPLATE / "configs": [file.name for file in examples if _uses(file, sections)],
        TEMPLATE / "tests": (*TESTS_OF_TEMPLATE, *folders),
    }

    def left_out(folder: str, names: list[str]) -> set[str]:
        ignore = shutil.ignore_patterns(*LEFT_OUT, *by_folder.get(Path(folder), ()))
        ignored = ignore(folder, names)
        large = {name for name in names if name not in ignored and _is_foreign(Path(folder, name))}
        for name in sorted(large):
            print(f"left out: {Path(folder, name)}")
        return ignored | large

    shutil.copytree(TEMPLATE, dest, ignore=left_out, dirs_exist_ok=True)
    for kept in (".gitignore", ".ci/run"):
        (dest / kept).parent.mkdir(exist_ok=True)
        shutil.copy2(TEMPLATE / kept, dest / kept)
    (dest / "saved").mkdir()
    (dest / "saved" / ".gitkeep").touch()
    schema = json.loads((TEMPLATE / "docs" / "config.schema.json").read_text(encoding="utf-8"))
    for section in sections:
        schema["properties"].pop(section, None)
    (dest / "docs").mkdir()
    text = json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
    (dest / "docs" / "config.schema.json").write_text(text, encoding="utf-8")
    config, requirements = dest / "config.json", dest / "requirements.txt"
    name = json.dumps(_name(dest))
    text = config.read_text(encoding="utf-8")
    text = re.sub(r'("name":\s*)"[^"]*"', lambda match: match[1] + name, text, count=1)
    config.write_text(text, encoding="utf-8")
    # a requirement of one folder only names that in a comment
    lines = requirements.read_text(encoding="utf-8").splitlines(keepends=True)
    lines = [line for line in lines if line.partition("# ")[2].strip() not in folders]
    requirements.write_text("".join(lines), encoding="utf-8")


def find_run(run: Path, trust: bool) -> tuple[Path, dict]:
    """The best checkpoint of a run, and its content. Raises UserError, also for its config."""
    from utils import checkpoint
    from utils.config.config import ConfigParser
    from utils.config.trust import Trust

    path, state = checkpoint.find(run, best=True)
    if state["config"] is None or not state["state_dict"]:
        raise UserError(f"--from {run}: pass a run of this template, or a checkpoint of one")
    trusted = Trust((), everything=trust)
    config = state["config"] | {"name": "run"}  # the project gets a name of its own
    ConfigParser(config, path, origin=f"the config in {path}", trust=trusted)
    return path, state


def copy_run(path: Path, state: dict, dest: Path, without: Collection[str] = ()) -> Path:
    """Bring a run's configuration and best weights along; returns the weights' path within `dest`.

    The new project trains: another verb's trainer and the sections of its folder stay behind, like
    the sections `without`.
    """
    from utils import checkpoint
    from utils.config.sections import LOADERS, sources_of
    from utils.config.trust import Trust

    config = {key: value for key, value in state["config"].items() if key != "versions"}
    source, settings = sources_of(config, Trust(config))["trainer"], config["trainer"]
    folder = source.find(source.split(settings)[0]).__module__.partition(".")[0]
    if folder in map(folder_of, optional_verbs()):
        accepted = source.signature(source.find(source.default)).parameters
        config["trainer"] = {key: value for key, value in settings.items() if key in accepted}
        without = {*without, *sections_of([folder])}
    config = {key: value for key, value in config.items() if key not in without}
    own = {"name": _name(dest)}
    for section in LOADERS:  # what a resumed run took from its checkpoint is not the new data's
        spec = config.get(section)
        if isinstance(spec, dict) and "args" in spec:
            kept = {k: v for k, v in spec["args"].items() if k not in ("classes", "pixel_range")}
            own[section] = spec | {"args": kept}
    config_file.write(config | own, dest / "config.json")
    run = path.absolute().parent.name
    folder = Path("saved/models") / (safe_name(str(config["name"])) or "run") / safe_name(run)
    (dest / folder).mkdir(parents=True)
    shutil.copy2(path, dest / folder / path.name)
    if config.keys() != state["config"].keys() - {"versions"} or config["trainer"] != settings:
        checkpoint.save(state | {"config": config}, dest / folder / path.name)
    return folder / path.name


def _uses(file: Path, sections: Collection[str]) -> bool:
    """Whether an example configuration, or one that it extends, has one of the sections."""
    return not config_file.read_layers(file)[0].keys().isdisjoint(sections)


def _is_foreign(path: Path) -> bool:
    """Whether it is not source code: a virtual environment, or large and without Python files."""
    if (path / "pyvenv.cfg").exists() or (path / "conda-meta").exists():
        return True
    size = 0
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.suffix == ".py":
            return False
        size += file.lstat().st_size
    return size > LARGE


def _name(dest: Path) -> str:
    return safe_name(dest.resolve().name)[:100] or "run"


if __name__ == "__main__":
    sys.exit(main())
