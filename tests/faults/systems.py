"""What other systems lack or do otherwise, as far as Linux can show it: processes that are spawned,
a console that is not Unicode, long paths, no functions and signals of Unix. The results must be
those of an ordinary run.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.faults.environment import serve_memory_by_workers
from tests.faults.gallery import answers, gallery
from tests.faults.lab import Fault, Lab, check
from tests.faults.server import ROOT, Ended, run

RUN = "saved/models/Digits/run"
COMMANDS = [
    ["train.py", "-c", "digits.json"],
    ["train.py", "-r", RUN, "--epochs", "3"],
    ["train.py", "-c", "parts.json"],
    ["train.py", "-c", "masks.json"],
    ["test.py", "-r", RUN],
    ["test.py", "-r", "saved/models/Parts/run", "--images", "parts/test"],
    ["export.py", "-r", RUN, "-s", "exporter.args.opset=17"],
    ["prune.py", "-c", "prune.json", "-r", RUN, "--check"],
]
UNIX = {  # what Windows lacks
    os: ["forkpty", "setpgrp", "setpgid", "setsid", "getpgid", "killpg", "geteuid", "getuid",
         "sched_getaffinity", "getloadavg", "uname", "mkfifo", "pread", "posix_fadvise"],
    signal: ["SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGKILL", "SIGCHLD", "SIGALRM",
             "SIGPIPE", "pthread_sigmask", "sigwait", "setitimer", "alarm"],
}  # fmt: skip
MODULES = ("resource", "pwd", "grp", "termios", "tty", "pty")
NAMES = "parts 型 é ß"  # cp932 has no é, cp1252 no 型


def trial(lab: Lab, random: Random) -> Counter:
    name, command = random.choice(list(TRIALS)), random.choice(COMMANDS)
    expected = lab.once(f"on this system {command}", lambda: _usual(lab, command))
    try:
        found = TRIALS[name](lab, command, random)
        if found != expected:
            differing = [key for key in expected if found.get(key) != expected[key]]
            raise Fault(f"other numbers in {', '.join(differing)}")
    except Fault as fault:
        raise Fault(f"{name}, {' '.join(command)}: {fault}") from None
    return Counter({name: 1})


def _usual(lab: Lab, command: list[str]) -> dict:
    work = lab.copy(gallery(lab), "usual")
    check(run(work, command), allowed=(0,))
    return answers(work)


def spawned(lab: Lab, command: list[str], random: Random) -> dict:
    """Workers start as on Windows and macOS."""
    work = lab.copy(gallery(lab))
    more = ["-s", "data_loader.args.num_workers=2"]
    prepare = [serve_memory_by_workers, _show_the_project,
               lambda: multiprocessing.set_start_method("spawn", force=True)]  # fmt: skip
    check(run(work, [*command, *more], prepare), allowed=(0,))
    return answers(work)


def _show_the_project() -> None:
    os.environ["PYTHONPATH"] = str(ROOT)  # to spawned processes; a script's folder is there anyway


def missing(lab: Lab, command: list[str], random: Random) -> dict:
    """Without the functions, signals and modules that Windows lacks."""
    work = lab.copy(gallery(lab))
    check(run(work, command, [_take_away]), allowed=(0,))
    return answers(work)


def _take_away() -> None:
    import ctypes

    for module, names in UNIX.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    for name in MODULES:
        sys.modules[name] = None
    ctypes.CDLL = lambda *_, **__: object()  # no mallopt


def long_paths(lab: Lab, command: list[str], random: Random) -> dict:
    """A project whose path alone has 200 characters and more."""
    short = lab.copy(gallery(lab), "whole")
    parent = lab.fresh()
    while len(str(parent)) < 200 + random.randrange(20):
        parent = parent / ("x" * random.randint(1, 30))
    parent.parent.mkdir(parents=True, exist_ok=True)
    short.rename(parent)
    check(run(parent, command), allowed=(0,))
    return answers(parent)


def console(encoding: str) -> Callable[[Lab, list[str], Random], dict]:
    """A trial in a new process, with a console that is not Unicode and no encoding of files that is
    taken for granted.
    """

    def other_console(lab: Lab, command: list[str], random: Random) -> dict:
        work = lab.copy(gallery(lab))
        (work / "parts").rename(work / NAMES)
        (work / "parts.cache").rename(work / f"{NAMES}.cache")
        words = [word.replace("parts/", f"{NAMES}/") for word in command]
        for file in work.glob("*.json"):
            text = file.read_text(encoding="utf-8")
            text = text.replace('"data_dir": "parts"', f'"data_dir": "{NAMES}"')
            file.write_text(text, encoding="utf-8")
        environment = os.environ | {
            "PYTHONUTF8": "0", "PYTHONIOENCODING": encoding, "LC_ALL": "C.UTF-8",
            "PYTHONWARNDEFAULTENCODING": "1",
        }  # fmt: skip
        ended = _subprocess(work, words, environment)
        check(ended, allowed=(0,))
        for line in ended.output.splitlines():  # a file would be read in the console's encoding
            if "EncodingWarning" in line and str(ROOT) in line:
                raise Fault(line.strip())
        return answers(work)

    return other_console


def _subprocess(work: Path, command: list[str], environment: dict[str, str]) -> Ended:
    done = subprocess.run(
        [sys.executable, str(ROOT / command[0]), *command[1:]],
        cwd=work,
        env=environment,
        capture_output=True,
        check=False,
        timeout=300,
    )
    output = (done.stdout + done.stderr).decode(errors="backslashreplace")
    return Ended(done.returncode, output, 0.0, hung=False)


TRIALS: dict[str, Callable[[Lab, list[str], Random], dict]] = {
    "spawned workers": spawned,
    "without what only Unix has": missing,
    "long paths": long_paths,
    "a console in cp932": console("cp932"),
    "a console in cp1252": console("cp1252"),
}
