"""A damaged file of any kind that the scripts read gives a sentence, or the answer that the whole
file gives.
"""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.faults.gallery import answers, gallery
from tests.faults.lab import Fault, Lab, check
from tests.faults.server import run

RUN, PARTS = "saved/models/Digits/run", "saved/models/Parts/run"
NEWEST, BEST = f"{RUN}/checkpoint-epoch2.pth", f"{RUN}/model_best.pth"
DROP = ["-s", "exporter.args.max_accuracy_drop=0.9"]


class Target(NamedTuple):
    """Files that a command reads.

    Attributes:
        files: a pattern
        commands: that read them; FILE becomes the file's path
        strict: whether a changed bit must be noticed; what a person may write holds no checksum
    """

    files: str
    commands: list[list[str]]
    strict: bool = True


TARGETS = {
    "checkpoint": Target(
        NEWEST,
        [
            ["train.py", "-r", RUN, "--epochs", "3"],
            ["train.py", "-r", "FILE", "--epochs", "3"],
            ["train.py", "-r", "FILE", "-c", "digits.json"],
            ["train.py", "-c", "digits.json", "-s", "arch.weights=FILE"],
            ["test.py", "-r", "FILE"],
            ["prune.py", "-c", "prune.json", "-r", "FILE", "--check"],
            ["new_project.py", "../new", "--from", "FILE"],
        ],
    ),
    "best checkpoint": Target(
        BEST,
        [
            ["test.py", "-r", RUN],
            ["train.py", "-r", RUN, "--epochs", "3"],
            ["export.py", "-r", RUN, *DROP],
            ["export.py", "-r", RUN, "--check"],
        ],
    ),
    "exported file": Target(
        f"{RUN}/*.onnx",
        [["test.py", "-r", "FILE"], ["export.py", "--compare", BEST, "FILE"]],
    ),
    "export.json": Target(f"{RUN}/export.json", [["export.py", "-r", RUN, *DROP]], strict=False),
    "result.json": Target(f"{RUN}/test/*.*", [["test.py", "-r", RUN]], strict=False),
    "metrics.csv": Target(
        "saved/log/Digits/run/metrics.csv", [["train.py", "-r", RUN, "--epochs", "3"]]
    ),
    "info.log": Target("saved/log/Digits/run/info.log", [["train.py", "-r", RUN, "--epochs", "3"]]),
    "a run's config.json": Target(
        f"{RUN}/config.json", [["train.py", "-r", RUN, "--epochs", "3"], ["test.py", "-r", RUN]]
    ),
    "config": Target("digits.json", [["train.py", "-c", "FILE"]], strict=False),
    "extended config": Target("digits.json", [["train.py", "-c", "child.json"]], strict=False),
    "index.json": Target("parts.cache/index.json", [["train.py", "-c", "parts.json"]]),
    "disk cache": Target(
        "parts.cache/*.bin", [["train.py", "-c", "parts.json"], ["test.py", "-r", PARTS]]
    ),
    "image": Target(
        "parts/*/*/*.*",
        [
            ["train.py", "-c", "parts.json"],
            ["train.py", "-c", "parts.json", "-s", "data_loader.args.cache=null"],
            ["train.py", "-r", PARTS, "--epochs", "3"],
            ["test.py", "-r", PARTS],
            ["test.py", "-r", PARTS, "--images", "FILE"],
            ["test.py", "-r", f"{PARTS}/model.onnx", "--images", "FILE"],
        ],
        strict=False,
    ),
    "mask": Target("masks/*/*/*.png", [["train.py", "-c", "masks.json"]], strict=False),
    "text": Target("texts/*.txt", [["train.py", "-c", "texts.json"]], strict=False),
    "digits.npz": Target("data/digits.npz", [["train.py", "-c", "digits.json"]]),
}


def _flip(content: bytearray, random: Random) -> None:
    for _ in range(random.choice([1, 1, 8, 100])):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)


def _cut(content: bytearray, random: Random) -> None:
    del content[random.randrange(len(content)) :]


def _zero(content: bytearray, random: Random) -> None:
    start = random.randrange(len(content))
    block = content[start : start + random.choice([16, 512, 4096])]
    content[start : start + len(block)] = bytes(len(block))


def _empty(content: bytearray, random: Random) -> None:
    content.clear()


def _noise(content: bytearray, random: Random) -> None:
    content[:] = random.randbytes(random.choice([1, 100, len(content)]))


def _append(content: bytearray, random: Random) -> None:
    content += random.randbytes(random.choice([1, 512]))


def _digit(content: bytearray, random: Random) -> None:
    """Another digit, comma, quote: a text stays a text."""
    places = [i for i, byte in enumerate(content) if byte in b'0123456789,:"[]{}']
    content[random.choice(places or [0])] = random.choice(b'0123456789,:"[]{} ')


DAMAGES: dict[str, Callable[[bytearray, Random], None]] = {
    "flipped": _flip,
    "cut off": _cut,
    "zeros": _zero,
    "empty": _empty,
    "noise": _noise,
    "longer": _append,
    "another digit": _digit,
}


def trial(lab: Lab, random: Random) -> Counter:
    source = gallery(lab)
    name = random.choice(list(TARGETS))
    target = TARGETS[name]
    file = random.choice(sorted(source.glob(target.files))).relative_to(source)
    damage, template = random.choice([*DAMAGES, "gone", "a folder", "swapped"]), target.commands
    command = [word.replace("FILE", file.as_posix()) for word in random.choice(template)]
    expected = lab.once(f"answers of {command}", lambda: _answer(lab, source, command))
    work = lab.copy(source)
    _damage(work, file, damage, random)
    ended = run(work, command)
    label = f"{file} {damage}, {' '.join(command)}"
    try:
        check(ended)
        may_differ = not target.strict or damage in ("swapped", "gone", "a folder")
        if ended.code == 0 and not may_differ and not _warns(ended.output, expected[1]):
            found = answers(work)
            for key, value in expected[0].items():
                if found.get(key) != value:
                    raise Fault(f"silently another answer in {key}")
    except Fault as fault:
        raise Fault(f"{label}: {fault}") from None
    return Counter({"files": 1, f"exit {ended.code}": 1})


def _answer(lab: Lab, source: Path, command: list[str]) -> tuple[dict, set[str]]:
    work = lab.copy(source, "whole")
    ended = run(work, command)
    check(ended, allowed=(0,))
    return answers(work), _lines(ended.output)


def _damage(work: Path, file: Path, damage: str, random: Random) -> None:
    path = work / file
    if damage in DAMAGES:
        content = bytearray(path.read_bytes())
        if content:
            DAMAGES[damage](content, random)
        path.write_bytes(content)
        return
    if damage == "swapped":
        others = sorted(p for p in work.rglob("*") if p.is_file() and p != path)
        shutil.copyfile(random.choice(others), path)
        return
    path.unlink()
    if damage == "a folder":
        path.mkdir()


def _lines(output: str) -> set[str]:
    return {line.strip() for line in output.splitlines()}


def _warns(output: str, usual: set[str]) -> bool:
    """Whether it says something unusual that has to do with a damage."""
    words = ("warning", "damaged", "cannot", "replaced", "does not", "decoded", "left out", "later")
    new = _lines(output) - usual
    return any(word in line.lower() for line in new for word in words)
