"""kill -9 at any time, in training, pruning and export: whatever is resumed ends as if nothing had
happened.

Half of the kills come at a random time, the others just before a file is changed.
"""

import shutil
import signal
from collections import Counter
from pathlib import Path
from random import Random

from tests.faults.lab import (
    DIGITS,
    EPOCHS,
    LEN_EPOCH,
    PRUNING,
    SAVE_EVERY,
    Fault,
    Lab,
    Reference,
    assert_equal_runs,
    assert_no_leftovers,
    check,
    find_run,
    merged,
    saves_within_epochs,
    watch_files,
    watch_steps,
    work_lost,
    write_config,
)
from tests.faults.server import Ended, Job, run

KILLS = 3  # at most, of one run
AVERAGE = {
    "optimizer": {"type": "SGD", "args": {"lr": 0.1, "momentum": 0.9}},
    "lr_scheduler": {
        "type": "OneCycleLR",
        "args": {"max_lr": 0.1, "total_steps": EPOCHS * LEN_EPOCH // 2},
    },
    "trainer": {"ema_decay": 0.9, "grad_accum_steps": 2},
}
PLATEAU = {
    "lr_scheduler": {"type": "ReduceLROnPlateau", "args": {"patience": 0, "threshold": 0.5}},
    "trainer": {"save_freq": 2, "keep_last": 1, "early_stop": 2, "monitor": "max val_accuracy"},
}
TRAINING = {"adam": {}, "average": AVERAGE, "plateau": PLATEAU}


def training(lab: Lab, random: Random) -> Counter:
    name = random.choice(list(TRAINING))
    config, label = merged(DIGITS, TRAINING[name]), f"train-{name}"
    return _killed(lab, random, label, config, ["train.py", "-c", "config.json"])


def pruning(lab: Lab, random: Random) -> Counter:
    trained = lab.trained()
    source = str(trained.folder / trained.path)
    config = merged(DIGITS, PRUNING)
    return _killed(lab, random, "prune", config, ["prune.py", "-c", "config.json", "-r", source])


def _killed(lab: Lab, random: Random, name: str, config: dict, command: list[str]) -> Counter:
    settings, counts = config["trainer"], Counter()
    every = settings["len_epoch"] * settings.get("save_freq", 1)
    within_epochs = random.random() < 0.5
    if within_epochs and not saves_within_epochs():
        counts["left out: no save_every"] += 1
    elif within_epochs:
        every = SAVE_EVERY * settings.get("grad_accum_steps", 1)
        saving = {"trainer": {"save_every": SAVE_EVERY}}
        name, config = f"{name}-save_every", merged(config, saving)
    reference = lab.reference(name, config, command)
    work = lab.fresh()
    write_config(work, config)
    steps, batches = work.with_name("steps"), settings.get("grad_accum_steps", 1)
    for _ in range(random.randint(1, KILLS)):
        run_path = find_run(work, config["name"])
        ended = _run_and_kill(work, _resuming(command, run_path, random), reference, random, steps)
        counts["runs"] += 1
        if ended.code == 128 + signal.SIGKILL:
            counts["kills" if "save_every" not in name else "kills, saved within epochs"] += 1
        else:
            check(ended, allowed=(0,))
    while find_run(work, config["name"]) is None:
        check(run(work, command, [lambda: watch_steps(steps)]), allowed=(0,))
    run_path = find_run(work, config["name"])
    check(run(work, [command[0], "-r", str(run_path)], [lambda: watch_steps(steps)]), allowed=(0,))
    assert_equal_runs(reference, work, run_path)
    log = work / "saved" / "log" / run_path.parent.name / run_path.name
    assert_no_leftovers(work / run_path, log)  # a run without a checkpoint is never continued
    lost = work_lost(steps, batches)
    if lost > max(every, batches):
        raise Fault(f"{lost} batches were trained twice, of at most {every}")
    return counts


def _resuming(command: list[str], run_path: Path | None, random: Random) -> list[str]:
    if run_path is None:
        return command
    return [command[0], "-r", *([str(run_path)] if random.random() < 0.5 else [])]


def _run_and_kill(
    work: Path, command: list[str], reference: Reference, random: Random, steps: Path | None = None
) -> Ended:
    prepare = [lambda: watch_steps(steps)] if steps else []
    if random.random() < 0.5:
        number = random.randint(1, reference.events)
        prepare.append(lambda: watch_files(work.with_name("events"), kill_at=number))
        return Job(work, command, prepare).end()
    seconds, job = random.uniform(0, reference.seconds), Job(work, command, prepare)
    if job.runs_for(seconds):
        job.send(signal.SIGKILL)
    return job.end()


def exporting(lab: Lab, random: Random) -> Counter:
    """A file under its final name is always whole, and a checkpoint stays as it is."""
    trained, counts = lab.trained(), Counter()
    command = ["export.py", "-r", str(trained.path), "-s", "exporter.args.max_accuracy_drop=0.9"]
    command += random.choice([[], ["exporter.args.opset=17"], ["--int8"]])  # 17: another exporter
    name = f"reference-export-{command[-1]}"
    reference = lab.once(name, lambda: _exported(lab, trained, command, name))
    work = lab.copy(trained.folder)
    if random.random() < 0.5:  # over an earlier file
        shutil.copy(reference.folder / reference.path / "model.onnx", work / trained.path)
    for _ in range(random.randint(1, KILLS)):
        ended = _run_and_kill(work, command, reference, random)
        counts["runs"] += 1
        if ended.code == 128 + signal.SIGKILL:
            counts["kills"] += 1
        else:
            check(ended, allowed=(0,))
        _compare_files(reference, work, must_exist=())
    check(run(work, command), allowed=(0,))
    names = [file.name for file in (reference.folder / reference.path).glob("*.onnx")]
    _compare_files(reference, work, must_exist=names)
    assert_no_leftovers(work)
    return counts


def _exported(lab: Lab, trained: Reference, command: list[str], name: str) -> Reference:
    work = lab.copy(trained.folder, name)
    events = work.with_name("events")
    ended = run(work, command, [lambda: watch_files(events)])
    check(ended, allowed=(0,))
    return Reference(work, trained.path, ended.seconds, events.stat().st_size)


def _compare_files(reference: Reference, work: Path, must_exist: tuple | list) -> None:
    for file in sorted((reference.folder / reference.path).glob("*")):
        other = work / reference.path / file.name
        if file.suffix not in (".onnx", ".pth"):
            continue
        if not other.exists():
            if file.suffix == ".pth" or file.name in must_exist:
                raise Fault(f"{file.name} is missing")
        elif other.read_bytes() != file.read_bytes():
            raise Fault(f"{file.name} is not the file that an unbroken export leaves")
