"""Start a project of your own:  python new_project.py ../MyProject

Copies the template into a new folder with a README, a name and a git repository of its own: what
git knows of, or without git everything but caches, virtual environments, data, what runs left
behind, and what else is large and holds no Python code.

--from RUN          start from a finished run: its configuration becomes config.json; its best
                    weights, the code it used and its report come along
--data FOLDER       config.json is for the images in that folder; with --from it is the run's,
                    for these images
--without VERB ...  the project does not have those verbs: no file, section, page or requirement
                    of theirs is left
--with-examples     copy configs/, too
"""

import argparse
import copy
import datetime
import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from utils import markdown
from utils.config import config_file
from utils.errors import UserError
from utils.files import safe_name, shell_command, write_json, write_text
from utils.screen import run_command

TEMPLATE = Path(__file__).resolve().parent
LEFT_OUT = (".*", "__pycache__", "*.pyc", "*.egg-info", "node_modules")  # wherever they are
OUTER = ("data", "saved", "README*", "*.pth", "*.pt", "*.onnx", "benchmarks.json")
TESTS_OF_TEMPLATE = ("benchmarks", "examples", "faults", "template")
# about the template itself
PAGES_OF_TEMPLATE = ("benchmarks.md", "trust.md", "from-pytorch-template.md", "README.ja.md",
                     "report.png", "report.ja.png", "shelf.png", "tutorial.md", "tutorial.ja.md",
                     *(f"tutorial_{part}.png" for part in ("terminal", "data", "tensorboard",
                       "folds", "comparison", "pruning")))  # fmt: skip
LARGE = 5_000_000  # bytes
DEFINED = re.compile(r"^(?:class|def) (\w+)", re.MULTILINE)
FIRST_SECTION, LAST_SECTION = "## Install and run", "## Licence"  # of README, that are taken along
LICENCE = """## Licence

MIT, see [LICENSE](LICENSE). Made from {template} {version}{commit} on {date}{before}.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("dest", metavar="DEST", type=Path, help="the new folder; its name becomes the project's")
    add("--from", dest="run", metavar="RUN", type=Path, help="a run or checkpoint to start from")
    add("--trust", action="store_true",
        help="with --from: take along what its config names beyond the template")  # fmt: skip
    add("--data", metavar="FOLDER", help="images, or a table of them, to write config.json for")
    add("--classes", metavar="A,B,C",
        help="with --from: the classes in order; equal names keep their outputs")  # fmt: skip
    add("--target", metavar="CLASS", help="with --data: the class that must not be missed")
    add("--weights", metavar="FILE",
        help="with --data: trained weights to start from, or torchvision's DEFAULT")  # fmt: skip
    add("--without", metavar="VERB", nargs="+", default=[], choices=sorted(optional_verbs()),
        help=f"leave out: {', '.join(sorted(optional_verbs()))}")  # fmt: skip
    add("--with-examples", action="store_true", help="copy the examples in configs/, too")
    return run_command(parser, argv, create)


def create(arguments: argparse.Namespace) -> None:
    """Make the project that the command line asks for. Raises UserError."""
    dest, folders = arguments.dest, {folder_of(verb) for verb in arguments.without}
    check_folders(folders)
    # before anything is written
    found = find_run(arguments.run, arguments.trust) if arguments.run else None
    proposed = propose(arguments, _name(dest))
    used = code_used_by(found[1]["config"]) if found else set()
    copy_template(dest, folders, arguments.with_examples, used)
    if proposed:
        write_text(dest / "config.json", proposed)
    weights = []
    if found:
        images = proposed and config_file.read_layers(dest / "config.json")[0]
        classes = arguments.classes and arguments.classes.split(",")
        path = copy_run(*found, dest, sections_of(folders), images, classes)
        weights = ["-r", path.as_posix()]
    command = shell_command("python", "train.py", "-c", "config.json", *weights)
    write_documents(dest, folders, command, arguments.with_examples, bool(found or proposed))
    begin_repository(dest)
    if found:
        print(origin_in_words(dest, found[0]))
    print(f"{dest} is ready:\n  {shell_command('cd', dest)} && {command}")


def origin_in_words(dest: Path, weights: Path) -> str:
    """What a project has from the run of the checkpoint `weights`, and what it has not."""
    report = ", report (docs/origin.html)" * (dest / "docs" / "origin.html").exists()
    config = config_file.read_layers(dest / "config.json")[0]
    place = config["data_loader"].get("args", {}).get("data_dir")
    return (
        f"from {weights}: configuration, weights{report}, but nothing that was found on its data: "
        "a test finds thresholds anew" + f"\nit trains on {place}" * (place is not None)
    )


def propose(arguments: argparse.Namespace, name: str) -> str | None:
    """The configuration for --data. Raises UserError if there are no images in it."""
    if arguments.classes and not arguments.run:
        raise UserError("--classes belongs to --from RUN")
    if arguments.weights and arguments.run:
        raise UserError("--weights: with --from the run's weights are taken")
    if arguments.data is None:
        if arguments.target or arguments.weights:
            raise UserError("--target and --weights belong to --data FOLDER")
        return None
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
    return declared(folders, "SECTIONS") | declared(folders, "PLAIN")


def declared(folders: Collection[str], kind: str) -> set[str]:
    """The names that these folders declare under `kind` in their sections.py."""
    modules = [importlib.import_module(f"{folder}.sections") for folder in folders]
    return {name for module in modules for name in getattr(module, kind, ())}


def check_folders(folders: Collection[str]) -> None:
    """Raises UserError if a verb that stays uses the folder of one that is left out."""
    for verb in sorted(optional_verbs()):
        if folder_of(verb) not in folders:
            code = code_in([TEMPLATE / f"{verb}.py", *TEMPLATE.glob(f"{folder_of(verb)}/*.py")])
            imported = re.findall(r"^ *(?:from|import) (\w+)", code, re.MULTILINE)
            if used := sorted(folders & set(imported)):
                raise UserError(f"--without: {verb} uses {used[0]}/; leave out {verb}, too")


def code_in(files: Iterable[Path]) -> str:
    return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)


def copy_template(
    dest: Path,
    folders: Collection[str] = (),
    with_examples: bool = False,
    used: Collection[Path] = (),
) -> None:
    """Copy the template's code and pages to `dest`. Raises UserError if that is not empty.

    Args:
        dest: the new folder
        folders: those of the verbs to leave out
        with_examples: copy configs/, too
        used: files that are copied even if git does not know them
    """
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UserError(f"{dest} is not empty; name a folder that does not exist yet")
    if dest.resolve().is_relative_to(TEMPLATE):
        raise UserError(f"{dest} is inside the template; name one beside it, like ../{dest.name}")
    sections, examples = sections_of(folders), TEMPLATE.glob("configs/*.json")
    scripts = [f"{verb}.py" for verb in optional_verbs() if folder_of(verb) in folders]
    by_folder = {
        TEMPLATE: (*OUTER, *folders, *scripts, *([] if with_examples else ["configs"])),
        TEMPLATE / "configs": [
            file.name for file in examples if config_file.read_layers(file)[0].keys() & sections
        ],
        TEMPLATE / "docs": (*PAGES_OF_TEMPLATE, "origin.html", *declared(folders, "PAGES")),
        TEMPLATE / "tests": (*TESTS_OF_TEMPLATE, *folders),
    }
    known = known_to_git()

    def left_out(folder: str, names: list[str]) -> set[str]:
        patterns = (*LEFT_OUT, *by_folder.get(Path(folder), ()))
        ignored = shutil.ignore_patterns(*patterns)(folder, names)
        for path in [Path(folder, name) for name in sorted(names) if name not in ignored]:
            if known is not None and path not in known and path not in used:
                ignored.add(path.name)
            elif _is_foreign(path):
                ignored.add(path.name)
                print(f"left out: {path}")
        return ignored

    shutil.copytree(TEMPLATE, dest, ignore=left_out, dirs_exist_ok=True)
    for kept in (".gitignore", ".ci/run"):
        (dest / kept).parent.mkdir(exist_ok=True)
        shutil.copy2(TEMPLATE / kept, dest / kept)
    (dest / "saved").mkdir()
    (dest / "saved" / ".gitkeep").touch()
    name = f'"name": {json.dumps(_name(dest))}'
    edit(dest / "config.json", lambda text: sub(r'"name":\s*"[^"]*"', name, text))


def known_to_git() -> set[Path] | None:
    """The template's files that git knows, and their folders; None without git."""
    if not (TEMPLATE / ".git").exists() or shutil.which("git") is None:
        return None
    names = _git(TEMPLATE, "ls-files", "-z").stdout.split("\0")
    files = {TEMPLATE / name for name in names if name}
    return files | {parent for file in files for parent in file.parents}


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8")


def edit(file: Path, change: Callable[[str], str]) -> None:
    """Replace the text of a file by what `change` makes of it; its mode stays."""
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")


def sub(pattern: str, replacement: str, text: str) -> str:
    """The text with the first match replaced, literally."""
    return re.sub(pattern, lambda match: replacement, text, count=1, flags=re.M | re.S)


def code_used_by(config: dict) -> set[Path]:
    """The files of the project that define what a configuration names."""
    from utils.config.sections import sources_of
    from utils.config.trust import texts

    named, sources = set(texts(config)), sources_of(config).values()
    defined = [names for source in sources for names in source.own_names().items()]
    return {TEMPLATE / f"{module.replace('.', '/')}.py" for n, module in defined if n in named}


def gone(folders: Collection[str], examples: bool, own_config: bool) -> re.Pattern:
    """Matches what a page may not name: pages left out, what belongs to verbs that are missing,
    examples that are not there, and text about the template's config.json if it has another.
    """
    scripts = {f"{verb}.py" for verb in optional_verbs() if folder_of(verb) in folders}
    names = {*folders, *scripts, *sections_of(folders)}
    names |= {*PAGES_OF_TEMPLATE, *declared(folders, "PAGES")}
    if not examples:
        names |= {f"configs/{file.name}" for file in TEMPLATE.glob("configs/*.json")}
        names |= {"configs/           more examples"}
    if own_config:
        names |= {"The first line trains"}
    inside = code_in(file for folder in folders for file in TEMPLATE.glob(f"{folder}/*.py"))
    kept = code_in(file for file in TEMPLATE.glob("*/*.py") if file.parent.name not in folders)
    only_inside = {*DEFINED.findall(inside)} - {*DEFINED.findall(kept)}
    names |= {name for name in only_inside if re.search(r"[a-z]_[a-z]|[a-z][A-Z]", name)}
    for folder in folders:
        requirements = (TEMPLATE / "requirements.txt").read_text(encoding="utf-8")
        packages = re.findall(rf"^([\w-]+).*# {folder}$", requirements, re.MULTILINE)
        names |= {*packages, *(package.replace("-", "_") for package in packages)}
    return re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, sorted(names)))})(?!\w)")


def write_documents(
    dest: Path, folders: Collection[str], command: str, examples: bool, own_config: bool
) -> None:
    """Make README, docs/, CI and metadata of the new project say what it has.

    Args:
        dest: the new folder, with the template's code and pages
        folders: those of the verbs that it lacks
        command: that trains
        examples: whether it has configs/
        own_config: whether its config.json is not the template's
    """
    name, pattern = dest.resolve().name, gone(folders, examples, own_config)
    for page in dest.glob("docs/*.md"):
        edit(page, lambda text: markdown.without(text, pattern))
    schema = json.loads((dest / "docs" / "config.schema.json").read_text(encoding="utf-8"))
    for section in sections_of(folders):
        schema["properties"].pop(section, None)
    write_json(dest / "docs" / "config.schema.json", schema, indent=1)
    manual = (TEMPLATE / "README.md").read_text(encoding="utf-8")
    commit = _git(TEMPLATE, "rev-parse", "--short=12", "HEAD").stdout.strip()
    before = re.search(r"Made from (.+)\.$", manual.strip().splitlines()[-1])
    project = (TEMPLATE / "pyproject.toml").read_text(encoding="utf-8")
    licence = LICENCE.format(
        template=manual.partition("\n")[0].removeprefix("# "),
        version=tomllib.loads(project)["project"]["version"],
        commit=commit and f" ({commit})",
        date=datetime.date.today(),
        before=f", and that from {before[1]}" if before else "",
    )
    manual = manual[manual.find(FIRST_SECTION) : manual.rfind(LAST_SECTION)]
    manual = sub(r"python train\.py -c config\.json( -r \S+)?", command, manual)
    manual = manual.replace("the complete example\n", "what a run does\n")
    readme = f"# {name}\n\n{markdown.without(manual, pattern)}\n{licence}"
    write_text(dest / "README.md", readme)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "project"
    for key, value in {"name": slug, "version": "0.1.0", "description": name}.items():
        line = f"{key} = {json.dumps(value, ensure_ascii=False)}"
        project = sub(rf'^{key} = "[^\n]*"$', line, project)
    write_text(dest / "pyproject.toml", project)
    # a requirement of one folder only names that in a comment
    lines = (dest / "requirements.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = (line for line in lines if line.partition("# ")[2].strip() not in folders)
    write_text(dest / "requirements.txt", "".join(kept))
    edit(dest / ".ci" / "run", lambda text: sub(r"# Tests on real data.*?^fi\n", "", text))


def begin_repository(dest: Path) -> None:
    """A git repository for the new project, with a first commit if git knows who commits."""
    if shutil.which("git") is None or (dest / ".git").exists():
        return
    if _git(dest, "init", "--quiet").returncode:
        return
    if all(_git(dest, "config", key).stdout.strip() for key in ("user.name", "user.email")):
        _git(dest, "add", "--all")
        _git(dest, "commit", "--quiet", "--no-verify", "-m", "Begin from the template")


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


def copy_run(
    path: Path,
    state: dict,
    dest: Path,
    without: Collection[str] = (),
    images: dict | None = None,
    classes: list[str] | None = None,
) -> Path:
    """Bring a run's configuration, best weights and report along; returns the weights' path within
    `dest`.

    The new project trains: another verb's trainer and the sections of its folder stay behind, like
    the sections `without`. What was found on the run's data, thresholds above all, does too.

    Args:
        path: of the checkpoint
        state: its content
        dest: the new folder
        without: sections of verbs that it lacks
        images: a configuration for other images, whose data the new one is to have
        classes: in the order of the outputs
    """
    from utils import checkpoint
    from utils.config.sections import LOADERS, sources_of
    from utils.config.trust import Trust

    left_out, settings = {"versions", *without}, state["config"]["trainer"]
    source = sources_of(state["config"], Trust(state["config"]))["trainer"]
    folder = source.find(source.split(settings)[0]).__module__.partition(".")[0]
    if folder in map(folder_of, optional_verbs()):
        accepted = source.signature(source.find(source.default)).parameters
        settings = {key: value for key, value in settings.items() if key in accepted}
        left_out |= sections_of([folder])
    if images is not None:
        left_out |= {*LOADERS[1:], "inspection"}
    kept = {key: value for key, value in state["config"].items() if key not in left_out}
    kept["trainer"] = settings
    config = copy.deepcopy(kept) | {"name": _name(dest), "$schema": "docs/config.schema.json"}
    for section in LOADERS:
        args = config[section].get("args", {}) if isinstance(config.get(section), dict) else {}
        for key in ("classes", "pixel_range"):  # what a resumed run took from its checkpoint
            args.pop(key, None)
        place = args.get("data_dir")
        if isinstance(place, str) and not Path(place).is_absolute() and Path(place).exists():
            args["data_dir"] = str(Path(place).resolve())
    if images is not None:
        config |= _for_images(config, images)
    if classes:
        args = config["data_loader"].setdefault("args", {})
        args["classes"] = [name.strip() for name in classes]
    config_file.write(config, dest / "config.json")
    run = path.absolute().parent.name
    folder = Path("saved/models") / (safe_name(str(kept["name"])) or "run") / safe_name(run)
    (dest / folder).mkdir(parents=True)
    shutil.copy2(path, dest / folder / path.name)
    found = {key: None for key in ("inspection", "novelty", "decided") if state.get(key)}
    if found or kept != {k: v for k, v in state["config"].items() if k != "versions"}:
        checkpoint.save(state | {"config": kept} | found, dest / folder / path.name)
    if (report := path.parent / "test" / "report.html").exists():
        shutil.copy2(report, dest / "docs" / "origin.html")
    return folder / path.name


def _for_images(config: dict, images: dict) -> dict:
    """The sections of a run's configuration that change for other images.

    Raises UserError if the run's loader is not for image folders.
    """
    loader, other = config["data_loader"], images["data_loader"]
    if loader.get("type") != other["type"]:
        raise UserError(f"--data: the run's {loader.get('type')} does not read folders of images")
    layout = ("data_dir", "split", "stratify", "group", "labels", "balance", "validation_split")
    args = {k: v for k, v in loader.get("args", {}).items() if k not in layout}
    args |= {key: value for key, value in other["args"].items() if key in layout}
    target = {"inspection": images["inspection"]} if "inspection" in images else {}
    return {"data_loader": loader | {"args": args}} | target


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
