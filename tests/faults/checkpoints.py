"""Checkpoints with fields that are missing or odd: read with a sentence, or as if nothing were."""

import shutil
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.gallery import gallery
from tests.faults.hostile import COMMANDS, FILE, RUN
from tests.faults.lab import Fault, Lab, check
from tests.faults.server import isolated, run

ODD = (
    None, True, False, 0, 1, -1, 3, 2**40, -(2**63), 1e308, float("nan"), float("inf"), 0.5, "",
    "a", "é\0\ud800", [], [[]], [1, 2], ["a", "b"], {}, {"a": 1}, {0: 1}, {"": {}}, (), (1, 2),
    [None] * 3, "x" * 5000,
)  # fmt: skip
OTHERS = ["pytorch-template", "a bare state_dict", "a tensor", "a list", "a number", "nested"]


def trial(lab: Lab, random: Random) -> Counter:
    work, command = lab.copy(gallery(lab)), random.choice(COMMANDS)
    label = isolated(_change, work / FILE, random)
    command = [{"FILE": FILE, "RUN": RUN}.get(word, word.replace("=FILE", f"={FILE}"))
               for word in command]  # fmt: skip
    if RUN in command:
        for other in ("model_best.pth", "checkpoint-epoch1.pth"):
            shutil.copyfile(work / FILE, work / RUN / other)
    ended = run(work, command)
    try:
        check(ended)
    except Fault as fault:
        raise Fault(f"{label}, {' '.join(command)}: {fault}") from None
    return Counter({"checkpoints": 1, f"exit {ended.code}": 1})


def _change(path: Path, random: Random) -> str:
    """Change a checkpoint, or write another thing in its place; returns what was done."""
    import torch

    state = torch.load(path, weights_only=True)
    if random.random() < 0.1:
        kind = random.choice(OTHERS)
        torch.save(_other(kind, state), path)
        return kind
    done = []
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        place, keys = state, []
        while True:
            names = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = random.choice(names)
            keys.append(str(key))
            inner = place[key]
            if not isinstance(inner, dict | list) or not inner or random.random() < 0.4:
                break
            place = inner
        how = random.choice(["gone", "odd", "odd", "odd tensor", "more", "another's"])
        if how == "gone" or (how == "more" and not isinstance(place, dict)):
            del place[key]
        elif how == "more":
            place[random.choice(["x", "", "é", 7])] = random.choice(ODD)
        elif how == "another's":
            place[key] = state[random.choice(list(state))] if state else None
        elif how == "odd tensor":
            place[key] = _odd_tensor(inner, random)
        else:
            value = random.choice(ODD)
            place[key], how = value, f"= {str(value)[:20]!a}"
        done.append(f"{'.'.join(keys)} {how}")
        if not state:
            break
    torch.save(state, path)
    return "; ".join(done)


def _odd_tensor(value: Any, random: Random) -> Any:
    import torch

    shape = list(value.shape) if isinstance(value, torch.Tensor) else [2]
    return random.choice(
        [
            torch.zeros(*shape, 1),
            torch.zeros(0),
            torch.zeros(()),
            torch.full(shape, float("nan")),
            torch.zeros(shape, dtype=torch.complex64),
            torch.zeros(shape, dtype=torch.int8),
            torch.zeros(shape, dtype=torch.float64),
            torch.zeros(shape, dtype=torch.bool),
            torch.empty(shape, device="meta"),
            torch.zeros(shape).to_sparse(),
            torch.nn.Parameter(torch.zeros(shape)),
            torch.zeros(1).expand(shape),
        ]
    )


def _other(kind: str, state: dict) -> Any:
    import torch

    if kind == "pytorch-template":
        keys = ("arch", "epoch", "state_dict", "optimizer", "monitor_best", "config")
        return {key: state[key] for key in keys}
    if kind == "nested":
        value: list = []
        for _ in range(150):
            value = [value]
        return state | {"trainer": value}
    return {
        "a bare state_dict": state["state_dict"],
        "a tensor": torch.zeros(3),
        "a list": [state],
        "a number": 7,
    }[kind]
