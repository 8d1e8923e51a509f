"""Every command, configuration and piece of code in the README is run, in a copy of the project, by a newcomer's order."""

import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request

import pytest

import new_project
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST = "saved/models/Digits_LeNet/1121_093042"  # what the README calls the first run
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)

# Calls the scripts' main one after the other, so that torch is imported once; "1121_093042" is the first run there is.
DRIVER = """
import importlib, json, os, sys
from pathlib import Path
for arguments in json.load(open("commands.json")):
    first = sorted(str(p) for p in Path("saved/models/Digits_LeNet").glob("*"))[:1]
    arguments = [a.replace("saved/models/Digits_LeNet/1121_093042", *first) if first else a for a in arguments]
    print("+", *arguments, flush=True)
    if arguments[0] == "-code":
        Path("code.py").write_text(arguments[1])
        exec(compile(arguments[1], "code.py", "exec"), {})
        continue
    code = importlib.import_module(arguments[0].removesuffix(".py")).main(arguments[1:])
    if code:
        sys.exit(f"{arguments} ended with {code}")
"""


def commands(text):
    for line in text.splitlines():
        for command in line.split(" #")[0].split("&&"):
            words = shlex.split(command)
            while words and "=" in words[0]:
                words = words[1:]
            if words:
                yield words


def make_parts(folder):
    """Pictures of good and bad parts: twos and eights of scikit-learn's digits."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label, digit in (("OK", 2), ("NG", 8)):
        (folder / label).mkdir(parents=True)
        for number, picture in enumerate(digits.images[digits.target == digit][:40]):
            Image.fromarray((picture * 15).astype("uint8")).resize((40, 40)).save(folder / label / f"{number}.png")


@pytest.fixture
def newcomer(tmp_path, data_dir):
    """The README's project, after all of it was done there."""
    if not BLOCKS:
        pytest.skip("a project of one's own has a README of its own")
    folder = tmp_path / "Kata"
    new_project.copy_template(folder)
    (folder / "config.json").write_text((ROOT / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "data").mkdir()
    (folder / "data" / "digits.npz").write_bytes((data_dir / "digits.npz").read_bytes())
    make_parts(folder / "data" / "parts")
    todo = []
    for number, (language, text) in enumerate(BLOCKS):
        if language == "bash":
            todo += [words[1:] for words in commands(text) if words[0] == "python" and words[1] != "-m"]
        elif language in ("json", "jsonc"):
            name = "readme_parts.json" if '"name": "Parts"' in text else f"readme{number}.json"
            (folder / name).write_text(text, encoding="utf-8")
            run = ["prune.py", "-c", name, "-r", FIRST] if '"pruner"' in text else ["train.py", "-c", name, "--epochs", "2"]
            todo.append(run)
        elif language == "python" and (path := re.match(r"# (\w+/\w+\.py)\n", text)):
            (folder / path[1]).write_text(text, encoding="utf-8")
        elif language == "python" and "model/loss.py" in text:
            with open(folder / "model" / "loss.py", "a", encoding="utf-8") as file:
                file.write(f"\n\n{text}")
        else:
            todo.append(["-code", text])
    (folder / "commands.json").write_text(json.dumps(todo))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], cwd=folder, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder, done.stdout


def runs_in_tensorboard(folder):
    """What TensorBoard calls the runs."""
    from tensorboard import program

    board = program.TensorBoard()
    board.configure(argv=[None, "--logdir", str(folder), "--port", "0"])
    url = board.launch()
    with urllib.request.urlopen(f"{url}experiment/defaultExperimentId/data/runs", timeout=60) as answer:
        return json.load(answer)


def test_it_begins_with_the_two_commands():
    if not BLOCKS:
        pytest.skip("a project of one's own has a README of its own")
    assert BLOCKS[0][1].splitlines() == [
        "pip install -r requirements.txt && python train.py -c config.json",
        "pip install -r requirements-dev.txt && python -m pytest",
    ]


def test_all_commands_and_configurations_run(newcomer):
    folder, out = newcomer
    assert out.count("\n+ ") > 20
    best = float(re.search(r"best val_accuracy (\d\.\d+)", out)[1])
    assert best >= 0.97
    for name in ("Digits_OneCycle", "Own", "Parts", "Parts_own_transforms", "Digits_frozen", "Digits_finetuned"):
        assert list((folder / "saved" / "models" / name).glob("*/model_best.pth"))
    for made in ("MyProject", "NextProject"):
        assert (folder.parent / made / "train.py").exists()
    logs = folder / "saved" / "log"
    shown = runs_in_tensorboard(logs)
    assert set(shown) == {str(p.parent.relative_to(logs)) for p in logs.glob("*/*/events*")}
    assert any(re.fullmatch(r"Digits_LeNet/\d{4}_\d{6}", run) for run in shown)


def test_every_command_is_one_we_know():
    words = [words for language, text in BLOCKS if language == "bash" for words in commands(text)]
    known = {"python", "pip", "tensorboard"}
    assert {first for first, *_ in words} <= known
    for _, *rest in (w for w in words if w[0] == "pip"):
        assert (ROOT / rest[-1]).exists()


def test_the_tree_lists_what_is_there():
    if not BLOCKS:
        pytest.skip("a project of one's own has a README of its own")
    tree = re.search(r"## The tree\n\n```\n(.*?)```", README, re.DOTALL)[1]
    named = {line.split()[0].rstrip("/") for line in tree.splitlines() if line}
    ignored = {"data", "README.md", "LICENSE", "pyproject.toml", "requirements.txt", "requirements-dev.txt"}
    present = {p.name for p in ROOT.iterdir() if not p.name.startswith((".", "__"))} - ignored
    assert named == present
