"""Which trial is next, and the processes that carry them out."""

import json
import os
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.faults import checkpoints, damage, environment, fuzz, hostile, kills, signals, systems
from tests.faults.lab import Fault, Lab, Trial


class Kind(NamedTuple):
    """A kind of trial.

    Attributes:
        trial: what is done; returns what is to be counted, raises Fault
        title: what it is, for the table
        share: of the time, beside the others'
    """

    trial: Trial
    title: str
    share: float


KINDS = {
    "train": Kind(kills.training, "kill -9 in training, resumed", 4),
    "prune": Kind(kills.pruning, "kill -9 in pruning, resumed", 2),
    "export": Kind(kills.exporting, "kill -9 in export, repeated", 2),
    "signals": Kind(signals.training, "signals in training", 2),
    "damage": Kind(damage.trial, "damaged files", 3),
    "checkpoints": Kind(checkpoints.trial, "odd checkpoints", 1),
    "pickles": Kind(hostile.pickles, "pickles that call something", 1),
    "gadgets": Kind(hostile.gadgets, "configs in checkpoints and exported files that do", 1),
    "configs": Kind(fuzz.configs, "configs of chance", 4),
    "commands": Kind(fuzz.commands, "command lines of chance", 1),
    "environment": Kind(environment.trial, "what goes wrong around a run", 2),
    "systems": Kind(systems.trial, "what other systems lack or do otherwise", 1),
}


class Plan(NamedTuple):
    """What the command line asks for."""

    minutes: float
    only: list[str]
    seed: int
    trials: int | None
    trial: int | None
    jobs: int


class Result(NamedTuple):
    """A trial: of which kind, its number, how long it took, what to count, what is wrong."""

    kind: str
    number: int
    seconds: float
    counts: dict[str, int]
    fault: str | None


def carry_out(plan: Plan, folder: Path) -> list[Result]:
    """Do the trials of a plan in its processes; a folder for each is made in `folder`."""
    end = time.monotonic() + 60 * plan.minutes
    children = {}
    for job in range(plan.jobs):
        file = folder / f"results-{job}.jsonl"
        pid = os.fork()
        if pid == 0:
            _work(plan, job, folder / f"job-{job}", file, end)
        children[pid] = file
    results = []
    for pid, file in children.items():
        os.waitpid(pid, 0)
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        results += [Result(*json.loads(line)) for line in lines]
    return results


def _work(plan: Plan, job: int, folder: Path, file: Path, end: float) -> None:
    code = 1
    try:
        lab, spent = Lab(folder), dict.fromkeys(plan.only, 0.0)
        with open(file, "w", encoding="utf-8", buffering=1) as output:
            for kind, number in _choose(plan, job, spent, end):
                result = attempt(lab, plan.seed, kind, number)
                spent[kind] += result.seconds
                output.write(json.dumps(result) + "\n")
                if result.fault:
                    print(f"{kind} {number}: {result.fault}", flush=True)
                if plan.trial is None:
                    shutil.rmtree(folder / "trial", ignore_errors=True)
        code = 0
    except KeyboardInterrupt:
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _choose(plan: Plan, job: int, spent: dict[str, float], end: float) -> Iterator[tuple[str, int]]:
    """The kind that has had the least of its share, and this process's next number of it."""
    if plan.trial is not None:
        yield from ((kind, plan.trial) for kind in plan.only if job == 0)
        return
    next_number = dict.fromkeys(plan.only, job)
    while time.monotonic() < end:
        left = [k for k in plan.only if plan.trials is None or next_number[k] < plan.trials]
        if not left:
            return
        kind = min(left, key=lambda name: spent[name] / KINDS[name].share)
        yield kind, next_number[kind]
        next_number[kind] += plan.jobs


def attempt(lab: Lab, seed: int, kind: str, number: int) -> Result:
    """One trial. What it does follows from seed, kind and number alone."""
    start_time, counts, fault = time.monotonic(), Counter(), None
    try:
        counts = KINDS[kind].trial(lab, Random(f"{seed} {kind} {number}"))
    except Fault as error:
        fault = str(error)
    except Exception:  # of this program, so that the others go on
        fault = f"the trial itself failed: {traceback.format_exc()}"
    return Result(kind, number, time.monotonic() - start_time, dict(counts), fault)
