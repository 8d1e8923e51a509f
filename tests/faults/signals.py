"""Signals at any time in training, single and doubled: what was trained is saved, and the exit code
says which signal it was.
"""

import signal
from collections import Counter
from random import Random

from tests.faults.lab import (
    DIGITS,
    Fault,
    Lab,
    assert_equal_runs,
    check,
    find_run,
    watch_steps,
    work_lost,
    write_config,
)
from tests.faults.server import Job, run

CODES = {"TERM": 143, "INT": 130, "HUP": 129, "QUIT": 131, "XCPU": 152, "USR1": 0}
COMMAND = ["train.py", "-c", "config.json"]


def training(lab: Lab, random: Random) -> Counter:
    reference, work = lab.trained(), lab.fresh()
    write_config(work, DIGITS)
    steps, name = work.with_name("steps"), random.choice(list(CODES))
    other = name if random.random() < 0.7 else random.choice(list(CODES))
    seconds, pause = random.uniform(0, reference.seconds), random.choice([None, 0, 10, 50, 100])
    job = Job(work, COMMAND, [lambda: watch_steps(steps)])
    job.runs_for(seconds)
    has_begun, sent = steps.exists() and steps.stat().st_size > 0, [name]
    job.send(getattr(signal, f"SIG{name}"))
    if pause is not None and job.runs_for(pause / 1000):
        job.send(getattr(signal, f"SIG{other}"))
        sent.append(other)
    ended = job.end()
    label = f"{' and '.join(sent)}{'' if pause is None else f' {pause} ms apart'}"
    counts = Counter({f"{name} {'doubled' if len(sent) > 1 else 'single'}": 1})
    codes = {CODES[each] for each in sent} | {0}
    if not has_begun:  # nothing can be lost yet; Python's own way to end will do
        codes |= {128 + getattr(signal, f"SIG{each}") for each in sent}
    try:
        if ended.code not in (130, *codes) or "KeyboardInterrupt" not in ended.output:
            check(ended, tuple(codes))
        if find_run(work, "Digits") is None:
            check(run(work, COMMAND), allowed=(0,))
        elif ended.code:
            said_saved = "everything is saved" in ended.output
            again = run(work, ["train.py", "-r"], [lambda: watch_steps(steps)])
            check(again, allowed=(0,))
            lost = work_lost(steps)
            if has_begun and lost > 0:
                raise Fault(f"{lost} batches lost, {'though said to be saved' * said_saved}")
        assert_equal_runs(reference, work, find_run(work, "Digits"))
    except Fault as fault:
        when = "in training" if has_begun else "before the first batch"
        raise Fault(f"{label}, {when}: {fault}") from None
    return counts
