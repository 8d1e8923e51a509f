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
import ast
import contextlib
import datetime
import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Collection
from pathlib import Path

from utils import markdown
from utils.config import config_file
from utils.errors import UserError
from utils.files import safe_name, shell_command
from utils.screen import leave_screen, open_screen

TEMPLATE = Path(__file__).resolve().parent
LEFT_OUT = (".*", "__pycache__", "*.pyc", "*.egg-info", "node_modules")  # wherever they are
OUTER = ("data", "saved", "docs", "README*", "*.pth", "*.pt", "*.onnx", "benchmarks.json")
TESTS_OF_TEMPLATE = ("benchmarks", "examples", "faults", "template")
# about the template itself
PAGES_OF_TEMPLATE = ("benchmarks.md", "trust.md", "from-pytorch-template.md", "README.ja.md",
                     "report.png", "report.ja.png", "shelf.png", "tutorial.md",
                     "tutorial.ja.md")  # fmt: skip
LARGE = 5_000_000  # bytes
FIRST_SECTION, LAST_SECTION = "## Install and run", "## Licence"  # of README, that are taken along
LICENCE = """## Licence

MIT, see [LICENSE](LICENSE). Made from {template} {version}{commit} on {date}{before}.
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
    add("--classes", metavar="A,B,C",
        help="with --from: the classes in order; equal names keep their outputs")  # fmt: skip
    add("--target", metavar="CLASS", help="with --data: the class that must not be missed")
    add("--weights", metavar="FILE",
        help="with --data: trained weights to start from, or torchvision's DEFAULT")  # fmt: skip
    add("--without", metavar="VERB", nargs="+", default=[], choices=sorted(optional_verbs()),
        help=f"leave out: {', '.join(sorted(optional_verbs()))}")  # fmt: skip
    add("--with-examples", action="store_true", help="copy the examples in configs/, too")
    arguments = parser.parse_args(argv)
    dest, folders = arguments.dest, {folder_of(verb) for verb in arguments.without}
    try:
        check_folders(folders)
        # before anything is written
        found = find_run(arguments.run, arguments.trust) if arguments.run else None
        proposed = propose(arguments, _name(dest))
        used = code_used_by(found[1]["config"]) if found else set()
        copy_template(dest, arguments.without, arguments.with_examples, used)
        if proposed:
            (dest / "config.json").write_text(proposed, encoding="utf-8")
        weights = None
        if found:
            images = proposed and config_file.read_layers(dest / "config.json")[0]
            classes = arguments.classes and arguments.classes.split(",")
            weights = copy_run(*found, dest, sections_of(folders), images, classes)
        start = ["-r", weights.as_posix()] if weights else []
        command = shell_command("python", "train.py", "-c", "config.json", *start)
        kind = arguments.with_examples, bool(found or proposed)
        write_documents(dest, arguments.without, command, *kind)
        begin_repository(dest)
    except (UserError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(f"{dest} is ready:\n  {shell_command('cd', dest)} && {command}")
    leave_screen()
    return 0


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


def copy_template(
    dest: Path,
    without: Collection[str] = (),
    with_examples: bool = False,
    used: Collection[Path] = (),
) -> None:
    """Copy the template's code to `dest`. Raises UserError if that is not empty.

    Args:
        dest: the new folder
        without: verbs to leave out
        with_examples: copy configs/, too
        used: files that are copied even if git does not know them
    """
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UserError(f"{dest} is not empty; name a folder that does not exist yet")
    if dest.resolve().is_relative_to(TEMPLATE):
        raise UserError(f"{dest} is inside the template; name one beside it, like ../{dest.name}")
    folders = {folder_of(verb) for verb in without}
    sections = sections_of(folders)
    examples = TEMPLATE.glob("configs/*.json")
    known = known_to_git(TEMPLATE)
    outer = OUTER if with_examples else (*OUTER, "configs")
    by_folder = {
        TEMPLATE: (*outer, *folders, *(f"{verb}.py" for verb in without)),
        TEMPLATE / "configs": [file.name for file in examples if _uses(file, sections)],
        TEMPLATE / "tests": (*TESTS_OF_TEMPLATE, *folders),
    }

    def left_out(folder: str, names: list[str]) -> set[str]:
        ignore = shutil.ignore_patterns(*LEFT_OUT, *by_folder.get(Path(folder), ()))
        ignored = ignore(folder, names)
        if known is not None:
            paths = {name: Path(folder, name) for name in names if name not in ignored}
            ignored |= {n for n, path in paths.items() if path not in known and path not in used}
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
    config, requirements = dest / "config.json", dest / "requirements.txt"
    name = json.dumps(_name(dest))
    text = config.read_text(encoding="utf-8")
    text = re.sub(r'("name":\s*)"[^"]*"', lambda match: match[1] + name, text, count=1)
    config.write_text(text, encoding="utf-8")
    # a requirement of one folder only names that in a comment
    lines = requirements.read_text(encoding="utf-8").splitlines(keepends=True)
    lines = [line for line in lines if line.partition("# ")[2].strip() not in folders]
    requirements.write_text("".join(lines), encoding="utf-8")


def known_to_git(folder: Path) -> set[Path] | None:
    """The files in a repository that git knows, and their folders; None if it is not one."""
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return None
    done = _git(folder, "ls-files", "-z")
    files = {folder / name for name in done.stdout.split("\0") if name}
    return files | {parent for file in files for parent in file.parents}


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8")


def code_used_by(config: dict) -> set[Path]:
    """The files of the project that define what a configuration names."""
    from utils.config.sections import sources_of
    from utils.config.trust import texts

    named, files = set(texts(config)), set()
    for source in sources_of(config).values():
        for name, module in source.own_names().items():
            if name in named:
                files.add(TEMPLATE / f"{module.replace('.', '/')}.py")
    return files


def gone(without: Collection[str], examples: bool, own_config: bool) -> re.Pattern:
    """Matches what a page may not name: pages left out, what belongs to verbs that are missing,
    examples that are not there, and what is said of the template's config.json if it has another.
    """
    folders = {folder_of(verb) for verb in without}
    names = {*folders, *(f"{verb}.py" for verb in without), *sections_of(folders)}
    names |= {*PAGES_OF_TEMPLATE, *pages_of(folders)}
    if not examples:
        names |= {f"configs/{file.name}" for file in TEMPLATE.glob("configs/*.json")}
        names |= {"configs/           more examples"}
    names |= {"The first line trains"} if own_config else set()
    defined: dict[str, set[str]] = {}
    for file in TEMPLATE.glob("*/*.py") if folders else ():
        with contextlib.suppress(SyntaxError, ValueError):
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                defined.setdefault(getattr(node, "name", ""), set()).add(file.parent.name)
    names |= {
        name
        for name, places in defined.items()
        if places <= folders and re.search(r"[a-z]_[a-z]|[a-z][A-Z]", name)
    }
    for line in (TEMPLATE / "requirements.txt").read_text(encoding="utf-8").splitlines():
        package, _, folder = re.split(r"([<>=].*# |$)", line, maxsplit=1)[:3]
        if folder.strip() in folders:
            names |= {package, package.replace("-", "_")}
    return re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, sorted(names)))})(?!\w)")


def pages_of(folders: Collection[str]) -> set[str]:
    """The pages in docs/ that describe these folders alone."""
    modules = [importlib.import_module(f"{folder}.sections") for folder in folders]
    return {page for module in modules for page in getattr(module, "PAGES", ())}


def write_documents(
    dest: Path, without: Collection[str], command: str, examples: bool, own_config: bool
) -> None:
    """README, docs/, CI and metadata of the new project, about what it has.

    Args:
        dest: the new folder, with the code
        without: verbs that it lacks
        command: that trains
        examples: whether it has configs/
        own_config: whether its config.json is not the template's
    """
    name, pattern = dest.resolve().name, gone(without, examples, own_config)
    left_out = {*PAGES_OF_TEMPLATE, *pages_of(map(folder_of, without))}
    (dest / "docs").mkdir(exist_ok=True)
    for page in (TEMPLATE / "docs").iterdir():
        if page.name in left_out or page.name.startswith("."):
            continue
        if page.is_dir():
            shutil.copytree(
                page, dest / "docs" / page.name, ignore=shutil.ignore_patterns(*LEFT_OUT)
            )
        elif page.suffix == ".md":
            text = markdown.without(page.read_text(encoding="utf-8"), pattern)
            (dest / "docs" / page.name).write_text(text, encoding="utf-8")
    schema = json.loads((TEMPLATE / "docs" / "config.schema.json").read_text(encoding="utf-8"))
    for section in sections_of(map(folder_of, without)):
        schema["properties"].pop(section, None)
    text = json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
    (dest / "docs" / "config.schema.json").write_text(text, encoding="utf-8")
    metadata = tomllib.loads((TEMPLATE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    manual = (TEMPLATE / "README.md").read_text(encoding="utf-8")
    commit = _git(TEMPLATE, "rev-parse", "--short=12", "HEAD").stdout.strip()
    before = re.search(r"Made from (.+)\.$", manual.strip().splitlines()[-1])
    licence = LICENCE.format(
        template=manual.partition("\n")[0].removeprefix("# "),
        version=metadata["version"],
        commit=commit and f" ({commit})",
        date=datetime.date.today(),
        before=f", and that from {before[1]}" if before else "",
    )
    manual = manual[manual.find(FIRST_SECTION) : manual.rfind(LAST_SECTION)]
    manual = re.sub(r"python train\.py -c config\.json( -r \S+)?", command, manual, count=1)
    manual = manual.replace("the complete example\n", "what a run does\n")
    readme = f"# {name}\n\n{markdown.without(manual, pattern)}\n{licence}"
    (dest / "README.md").write_text(readme, encoding="utf-8")
    project = dest / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "project"
    for key, value in {"name": slug, "version": "0.1.0", "description": name}.items():
        line = f"{key} = {json.dumps(value, ensure_ascii=False)}"
        text = re.sub(rf'^{key} = ".*"$', lambda _, line=line: line, text, count=1, flags=re.M)
    project.write_text(text, encoding="utf-8")
    script = dest / ".ci" / "run"
    text = script.read_text(encoding="utf-8")
    script.write_text(re.sub(r"# Tests on real data.*?^fi\n", "", text, flags=re.S | re.M), "utf-8")


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

    config = {key: value for key, value in state["config"].items() if key != "versions"}
    source, settings = sources_of(config, Trust(config))["trainer"], config["trainer"]
    folder = source.find(source.split(settings)[0]).__module__.partition(".")[0]
    if folder in map(folder_of, optional_verbs()):
        accepted = source.signature(source.find(source.default)).parameters
        config["trainer"] = {key: value for key, value in settings.items() if key in accepted}
        without = {*without, *sections_of([folder])}
    config = {key: value for key, value in config.items() if key not in without}
    own = {"name": _name(dest), "$schema": "docs/config.schema.json"}
    for section in LOADERS:  # what a resumed run took from its checkpoint is not the new data's
        spec = config.get(section)
        if isinstance(spec, dict) and "args" in spec:
            kept = {k: v for k, v in spec["args"].items() if k not in ("classes", "pixel_range")}
            own[section] = spec | {"args": kept}
    if images is not None:
        own |= _for_images(config | own, images)
        config = {k: v for k, v in config.items() if k not in (*LOADERS[1:], "inspection")}
    if classes:
        args = own["data_loader"].setdefault("args", {})
        args["classes"] = [name.strip() for name in classes]
    for section in LOADERS:  # a path of the template's, seen from the new folder
        args = (own.get(section) or {}).get("args", {})
        place = args.get("data_dir")
        if isinstance(place, str) and not Path(place).is_absolute() and Path(place).exists():
            args["data_dir"] = str(Path(place).resolve())
    config_file.write(config | own, dest / "config.json")
    run = path.absolute().parent.name
    folder = Path("saved/models") / (safe_name(str(config["name"])) or "run") / safe_name(run)
    (dest / folder).mkdir(parents=True)
    shutil.copy2(path, dest / folder / path.name)
    found = {key: None for key in ("inspection", "novelty", "decided") if state.get(key)}
    same = config.keys() == state["config"].keys() - {"versions"} and config["trainer"] == settings
    if found or not same:
        checkpoint.save(state | {"config": config} | found, dest / folder / path.name)
    if (report := path.parent / "test" / "report.html").exists():
        (dest / "docs").mkdir(exist_ok=True)
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
