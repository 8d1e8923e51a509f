"""Configs and command lines of chance: accepted, or refused with a sentence."""

import copy
import json
import os
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.gallery import CONFIGS, gallery
from tests.faults.lab import Fault, Lab, check
from tests.faults.server import ROOT, run

RUN = "saved/models/Digits/run"
MEMORY = 4 * 2**30  # bytes that a command may use beyond what is loaded
READERS = [
    *[["train.py", "-c", "FILE", "--check"]] * 6,
    ["train.py", "-c", "FILE", "--epochs", "1", "-s", "trainer.len_epoch=2"],
    ["prune.py", "-c", "FILE", "-r", RUN, "--check"],
    ["test.py", "-c", "FILE", "-r", RUN, "--check"],
    ["export.py", "-c", "FILE", "-r", RUN, "--check"],
]
NUMBERS = [0, 1, -1, 2, 3, 7, 0.5, -0.5, 1e-9, 1e9, 2**31, -(2**63), 2**64, 10**30, 1e308, -0.0]
WORDS = [
    "", " ", "a", "auto", "cpu", "LeNet", "MLP", "ResNetCifar", "Adam", "SGD", "StepLR", "accuracy",
    "cross_entropy", "mse_loss", "Trainer", "PruneTrainer", "PlainTrainer", "OnnxExporter",
    "DigitsDataLoader", "DiabetesDataLoader", "MaskFolderDataLoader", "max val_accuracy", "off",
    "min", "backbone", "F1Score", "LinearLR", "SequentialLR", "torch.nn.Linear", "os.system",
    "json", "torch.nn", "nowhere.Nothing", "a.b.c.d", "..", ".x", "型", "é\u0301", "\u202e", "a\nb",
    "a\0b", "NaN", "null", "{}", "${HOME}", "%s", "x" * 3000, "CON", "../../up", "~", "train",
    "val",
]  # fmt: skip
VALUES: list[Any] = [*NUMBERS, *WORDS, None, True, False, [], {}, [[]], [1, 2, 3], ["a"], {"a": 1},
                     {"type": "Adam"}, {"type": None}, {"args": {}}, {"type": "LeNet", "args": []},
                     [{"type": "accuracy"}] * 3, [None], float("nan"), float("inf")]  # fmt: skip
KEYS = ["arch", "loss", "metrics", "optimizer", "trainer", "data_loader", "valid_data_loader",
        "task", "lr_scheduler", "pruner", "exporter", "trackers", "engine", "inspection", "heatmap",
        "name", "seed", "n_gpu", "extends", "type", "args", "weights", "freeze", "unfreeze_at",
        "role", "param_groups", "no_decay", "len_epoch", "ema_decay", "precision", "num_workers",
        "subset", "validation_split", "target", "classes", "", "型", "Optimizer",
        "optimzer"]  # fmt: skip


def configs(lab: Lab, random: Random) -> Counter:
    """A config that is changed in some places."""
    work = lab.copy(gallery(lab))
    config = copy.deepcopy(_example(random))
    for _ in range(random.choice([1, 1, 1, 2, 3, 8])):
        _change(config, random)
    text = json.dumps(config, ensure_ascii=random.random() < 0.5, indent=random.choice([None, 1]))
    content = text.encode("utf-8", "surrogatepass")
    if random.random() < 0.25:
        content = _change_text(text, content, random)
    (work / "fuzz.json").write_bytes(content)
    if random.random() < 0.05:
        _chain(work, random)
    command = [word.replace("FILE", "fuzz.json") for word in random.choice(READERS)]
    ended = run(work, command, [_limit_memory])
    try:
        check(ended)
    except Fault as fault:
        shown = (work / "fuzz.json").read_text(encoding="utf-8", errors="replace")
        raise Fault(f"{' '.join(command)}: {fault}; the config: {shown[:1500]}") from None
    return Counter({"configs": 1, f"exit {ended.code}": 1})


def _example(random: Random) -> dict:
    from utils.config import config_file

    files = [ROOT / "config.json", *sorted((ROOT / "configs").glob("*.json"))]
    if random.random() < 0.8:
        return random.choice(list(CONFIGS.values()))
    return config_file.read_layers(random.choice(files))[0]


def _places(value: Any, keys: tuple = ()) -> Iterator[tuple]:
    """The keys of everything within a config."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*keys, key)
        if isinstance(inner, dict | list):
            yield from _places(inner, (*keys, key))


def _change(config: dict, random: Random) -> None:
    places = list(_places(config))
    if not places:
        return
    *keys, last = random.choice(places)
    place: Any = config
    for key in keys:
        place = place[key]
    how = random.randrange(8)
    if how == 0:
        del place[last]
    elif how == 1 and isinstance(place, dict):
        place[_misspelt(str(last), random)] = place.pop(last)
    elif how == 2 and isinstance(place, dict):
        place[random.choice(KEYS)] = copy.deepcopy(random.choice(VALUES))
    elif how == 3:
        place[last] = random.choice([[place[last]], {"type": place[last]}, str(place[last])])
    elif how == 4:  # a value from elsewhere
        *others, end = random.choice(places)
        value: Any = config
        for key in (*others, end):
            value = value[key]
        place[last] = copy.deepcopy(value)
    elif how == 5 and random.random() < 0.3:
        for _ in range(random.choice([5, 50, 400])):
            place[last] = random.choice([[place[last]], {"args": place[last]}])
    else:
        place[last] = copy.deepcopy(random.choice(VALUES))


def _misspelt(name: str, random: Random) -> str:
    at = random.randrange(len(name) + 1)
    shorter, longer = name[:at] + name[at + 1 :], name[:at] + "x" + name[at:]
    return random.choice([shorter, longer, name.upper(), f" {name}", f"{name}s"])


def _change_text(text: str, content: bytes, random: Random) -> bytes:
    at = random.randrange(len(text))
    signs = "{}[]\",:/*#\\\n\0'0e-é型"
    return random.choice(
        [
            (text[:at] + random.choice(signs) + text[at:]).encode(),
            (text[:at] + text[at + 1 :]).encode(),
            text[:at].encode(),
            content[:at] + b"\xff" + content[at:],
            b"\xef\xbb\xbf" + content,
            text.encode("utf-16"),
            text.encode("cp932", "replace"),
            text.replace(",", ",,", 1).encode(),
            text.replace("{", '{"seed": 1, "seed": 2, ', 1).encode(),
            text.replace(":", ': 1e99999, "x":', 1).encode(),
            text.replace(":", f': {"9" * 5000}, "x":', 1).encode(),
            ("/*" + text).encode(),
            (text + text).encode(),
            b"[" * 100_000,
            b"",
            f"[{text}]".encode(),
        ]
    )


def _chain(work: Path, random: Random) -> None:
    """Files that extend each other, in a circle or as a diamond."""
    file = "fuzz.json"
    odd = random.choice([7, [7], {}, "", [[]], None, "\0", "x" * 5000, "/dev/null"])
    text = random.choice(
        list(
            {
                "self": {"extends": file},
                "circle": {"extends": "b.json"},
                "diamond": {"extends": ["d0.json", "d0.json"]},
                "missing": {"extends": ["digits.json", "gone.json"]},
                "folder": {"extends": "."},
                "odd": {"extends": odd},
            }.values()
        )
    )
    (work / file).write_text(json.dumps(text))
    (work / "b.json").write_text(json.dumps({"extends": file}))
    depth = random.choice([5, 30])
    for number in range(depth):
        inner = [f"d{number + 1}.json"] * 2
        text = {"extends": inner} if number + 1 < depth else CONFIGS["digits.json"]
        (work / f"d{number}.json").write_text(json.dumps(text))


FLAGS = {
    "train.py": ["--lr", "--bs", "--epochs", "--profile", "--procs", "--max-restarts"],
    "prune.py": ["--procs", "--max-restarts"],
    "test.py": ["--split", "--images", "--heatmap", "--threads"],
    "export.py": ["-o", "--output", "--int8", "--compare", "--threads"],
    "new_project.py": ["--from", "--without"],
}
OF_PATHS = ("-c", "--config", "-r", "--resume", "-o", "--output", "--images", "--compare", "--from")
SHARED = ["-c", "--config", "-r", "--resume", "-d", "--device", "-s", "--set", "--check",
          "--verbose", "--help", "-h", "-x", "--", "-", "--chek", "--seed"]  # fmt: skip
PATHS = ["digits.json", "child.json", "parts.json", "prune.json", RUN, f"{RUN}/model_best.pth",
         f"{RUN}/model.onnx", f"{RUN}/config.json", "saved", "saved/models", "parts", "parts/test",
         "parts/train/NG/0.png", "texts", "gone", "gone/x.json", ".", "", " ", "/dev/null",
         "/proc/no/x.onnx", "new", "new.onnx", "new.pth", "n" * 300, "a\nb", "型 x", "\udcff", "~",
         "*.json", "data", "data/digits.npz", "--", "-1"]  # fmt: skip
PLAIN = ["0", "1", "-1", "2", "x", "", "nan", "inf", "1e-3", "1e400", "cpu", "cuda", "7", "0,0",
         "cpu,0", "test", "val", "train", "prune", "export", "true", "\udcff"]  # fmt: skip
STARTS = {
    "train.py": [["-c", "digits.json", "--check"], ["-r", RUN, "--epochs", "3"], ["-r"], []],
    "prune.py": [["-c", "prune.json", "-r", RUN, "--check"], ["-r", RUN], []],
    "test.py": [["-r", RUN], ["-r", RUN, "--check"], ["-r", f"{RUN}/model.onnx"], ["-r"], []],
    "export.py": [["-r", RUN, "--check"], ["-r"], []],
    "new_project.py": [["new"], ["new", "--from", RUN], []],
}


def commands(lab: Lab, random: Random) -> Counter:
    """A command line that is put together by chance, often around one that works."""
    work, script = lab.copy(gallery(lab)), random.choice(list(FLAGS))
    words = list(random.choice(STARTS[script]))
    for _ in range(random.choice([0, 1, 1, 2, 3])):
        at = random.randrange(len(words) + 1)
        words[at:at] = _words(script, random)
        if words and random.random() < 0.2:
            del words[random.randrange(len(words))]
    if "--procs" in words:  # each is a process, and takes seconds to start
        value = words.index("--procs") + 1
        words[value : value + 1] = [random.choice(["0", "-1", "x", "1", "1.5"])]
    ended = run(work, [script, *words], [_limit_memory])
    counts = Counter({"command lines": 1, f"exit {ended.code}": 1})
    try:
        check(ended)
    except Fault as fault:
        if "--verbose" in words and "traceback" in str(fault):
            return counts  # it was asked for
        raise Fault(f"{script} {' '.join(map(ascii, words))}: {fault}") from None
    return counts


def _words(script: str, random: Random) -> list[str]:
    flag = random.choice([*SHARED, *FLAGS[script], *FLAGS[script]])
    if flag in ("-s", "--set"):
        keys = random.choice(list(_places(CONFIGS["digits.json"])))
        key = random.choice(
            [".".join(map(str, keys)), random.choice(KEYS), "a.b.c", "metrics.9", "."]
        )
        value = random.choice([json.dumps(random.choice(VALUES)), random.choice(PLAIN)])
        return [flag, random.choice([f"{key}={value}", f"{key}={value}", key, f"={value}", value])]
    is_path = flag in OF_PATHS or random.random() < 0.1
    values = [random.choice(PATHS if is_path else PLAIN)]
    return [flag, *values * random.choice([0, 1, 1, 1, 2])]


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
