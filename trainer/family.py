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
from utils.files import ROOT, safe_name, shell_command, write_text
from utils.screen import run_command

FILE = "family.json"


class Family:
    """A folder saved/<kind>/<name>/<mmdd_HHMMSS> with a configuration, and ordinary runs in
    models/<member>/. What was begun goes on when the same member is trained again.

    Args:
        folder: of the family
        device: as on the command line, for all its runs

    Attributes:
        about: the content of family.json
    """

    def __init__(self, folder: Path, device: str | None = None):
        self.folder, self.device = folder, device
        file = folder / FILE
        try:
            self.about: dict = json.loads(file.read_text(encoding="utf-8"))
            self.config = config_file.read_layers(folder / "config.json")[0]
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} is not a family of runs: {error}") from None

    @classmethod
    def begin(cls, kind: str, config: dict, about: dict, device: str | None) -> "Family":
        """Make the folder of a new family; `about` is kept in its family.json."""
        trainer = config.get("trainer")
        save_dir = trainer.get("save_dir") if isinstance(trainer, dict) else None
        name = safe_name(str(config.get("name"))) or "run"
        root = Path(save_dir if isinstance(save_dir, str) else SAVE_DIR)
        folder = run_folder.new_run_dir(root, name, kind=kind)
        config_file.write(config, folder / "config.json")
        write_text(folder / FILE, json.dumps(about, indent=2) + "\n")
        return cls(folder, device)

    @classmethod
    def newest(cls, kind: str, device: str | None) -> "Family":
        """The newest one of this kind. Raises UserError if there is none."""
        files = sorted(Path(SAVE_DIR).glob(f"{kind}/*/*/{FILE}"), key=lambda f: f.stat().st_mtime)
        if not files:
            raise UserError(f"{Path(SAVE_DIR) / kind} holds no families of runs yet; pass -c FILE")
        return cls(files[-1].parent, device)

    def keep(self, **more: object) -> None:
        """Add to family.json."""
        self.about |= more
        write_text(self.folder / FILE, json.dumps(self.about, indent=2, ensure_ascii=False) + "\n")

    def find(self, member: str) -> Path | None:
        """The folder of a member's run, if it has saved anything."""
        runs = sorted((self.folder / "models" / member).glob("*/"))
        return next((run for run in reversed(runs) if any(run.glob("*.pth"))), None)

    def train(self, member: str, changes: dict) -> Result:
        """Train a member, or go on with it.

        Args:
            member: its name
            changes: "a.b.c" -> value, in its configuration

        Raises Interrupted if a signal stopped it, UserError or RunError if it failed.
        """
        run = self.find(member)
        if run is None:
            config = copy.deepcopy(self.config)
            for key, value in changes.items():
                config_file.assign(config, key.split("."), value)
            config["name"] = member
            config_file.assign(config, ["trainer", "save_dir"], str(self.folder))
            config = {key: value for key, value in config.items() if value is not None}
            file = self.folder / "configs" / f"{member}.json"
            file.parent.mkdir(exist_ok=True)
            config_file.write(config, file)
            return call_script("train", ["-c", str(file)], self.device)
        return call_script("train", ["-r", str(run)], self.device)


def family_command(
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
    run: Callable[[argparse.Namespace], Any],
) -> int:
    """Parse the command line and `run`; returns the exit code. A signal also says how to go on."""
    words = parser.prog.split()

    def say() -> None:
        print(f"stopped; go on with:\n  {shell_command(*words, '-r')}", flush=True)

    def work(arguments: argparse.Namespace) -> None:
        try:
            with cleaned_up(say):
                run(arguments)
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
