"""Runs that belong together: those of folds, or of a search."""

import argparse
import copy
import importlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from base.base_trainer import Result
from utils import run_folder
from utils.config import config_file
from utils.config.config import SAVE_DIR
from utils.engine.signals import cleaned_up
from utils.errors import Interrupted, RunError, UserError
from utils.files import ROOT, shell_command
from utils.screen import run_command

FILE = "family.json"


class Family:
    """A folder saved/<kind>/<name>/<mmdd_HHMMSS> with a configuration, and ordinary runs in
    models/<member>/. Training a member again resumes its run.

    Args:
        folder: of the family
        device: as on the command line, for all its runs

    Attributes:
        about: the content of family.json
    """

    def __init__(self, folder: Path, device: str | None = None):
        self.folder, self.device = folder, device
        try:
            self.about: dict = json.loads((folder / FILE).read_text(encoding="utf-8"))
            self.config = config_file.read_layers(folder / "config.json")[0]
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} is not a family of runs: {error}") from None

    @classmethod
    def begin(cls, config: dict, device: str | None, **about: object) -> "Family":
        """Make the folder of a new family; `about` is kept in its family.json."""
        root = Path(config["trainer"].get("save_dir", SAVE_DIR))
        folder = run_folder.new_run_dir(root, config["name"], kind=about["kind"])
        config_file.write(
            {k: v for k, v in config.items() if k != "$schema"}, folder / "config.json"
        )
        config_file.write(about | {"state": "unfinished"}, folder / FILE)
        return cls(folder, device)

    @classmethod
    def newest(cls, kind: str, device: str | None) -> "Family":
        """The newest one of this kind. Raises UserError if there is none."""
        files = Path(SAVE_DIR).glob(f"{kind}/*/*/{FILE}")
        if newest := max(files, key=lambda file: file.stat().st_mtime, default=None):
            return cls(newest.parent, device)
        raise UserError(f"{Path(SAVE_DIR) / kind} holds no families of runs yet; pass -c FILE")

    def keep(self, **more: object) -> None:
        """Add to family.json."""
        self.about |= more
        config_file.write(self.about, self.folder / FILE)

    def find(self, member: str) -> Path | None:
        """The folder of a member's run, if it has saved anything."""
        runs = sorted((self.folder / "models" / member).glob("*/"))
        return next((run for run in reversed(runs) if any(run.glob("*.pth"))), None)

    def train(self, member: str, config: dict) -> Result:
        """Train a member with this configuration, or resume its run.

        Raises Interrupted if a signal stopped it, UserError or RunError if it failed.
        """
        if run := self.find(member):
            return call_script("train", ["-r", str(run)], self.device)
        trainer = config["trainer"] | {"save_dir": str(self.folder)}
        file = self.folder / "configs" / f"{member}.json"
        file.parent.mkdir(exist_ok=True)
        config_file.write(config | {"name": member, "trainer": trainer}, file)
        return call_script("train", ["-c", str(file)], self.device)


def with_values(config: dict, values: dict) -> dict:
    """The configuration with these values, "a.b.c" -> value."""
    config = copy.deepcopy(config)
    for key, value in values.items():
        config_file.assign(config, key.split("."), value)
    return config


def family_parser(module: str, description: str, name: str) -> argparse.ArgumentParser:
    """What the commands of families share: -c, -r `name`, -d and -s."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("-c", "--config", metavar="FILE", type=Path)
    start.add_argument("-r", "--resume", metavar=name, type=Path, nargs="?", const=Path())
    parser.add_argument("-d", "--device", metavar="DEVICE")
    parser.add_argument("-s", "--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[],
                        help="with -c: set any key of the config")  # fmt: skip
    return parser


def family_command(
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
    kind: str,
    begin: Callable[[argparse.Namespace], Family],
    run: Callable[[Family, argparse.Namespace], Any],
) -> int:
    """Parse the command line, `begin` a family or find that of -r, and `run` it.

    Returns the exit code. A signal also says how to resume.
    """

    def say() -> None:
        command = shell_command(*parser.prog.split(), "-r")
        print(f"stopped; resume with:\n  {command}", flush=True)

    def work(arguments: argparse.Namespace) -> None:
        try:
            with cleaned_up(say):
                if arguments.resume is None:
                    family = begin(arguments)
                elif arguments.resume == Path():
                    family = Family.newest(kind, arguments.device)
                else:
                    family = Family(arguments.resume, arguments.device)
                run(family, arguments)
        except (Interrupted, KeyboardInterrupt):
            say()
            raise

    return run_command(parser, argv, work)


def call_script(script: str, arguments: list[str], device: str | None) -> Any:
    """Call a script's main(); returns its result.

    Raises Interrupted if a signal stopped it, UserError or RunError if it failed.
    """
    on = ["-d", device] if device else []
    code = importlib.import_module(script).main([*arguments, *on])
    if code > 128:
        raise Interrupted(signal.Signals(code - 128))
    if code:
        command = shell_command("python", f"{script}.py", *arguments)
        error = UserError if code == 2 else RunError
        raise error(f"this has failed, see above:\n  {command}")
    return code.result


def judges() -> list[ModuleType]:
    """What other folders do with families, if they are there: their modules `judging`, with
    functions `judge(run, device)` and `report(runs, folder, device)`.
    """
    files = sorted(ROOT.glob("*/judging.py"))
    return [importlib.import_module(f"{file.parent.name}.judging") for file in files]
