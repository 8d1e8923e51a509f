"""A fork server: this process imports once what the scripts need, and runs them in forks.

So a trial takes a fraction of a second. This process computes nothing itself: a fork has only the
thread that forks, and would wait for ever for threads of OpenMP or of a BLAS that had been started
before.
"""

import atexit
import contextlib
import faulthandler
import importlib
import os
import pickle
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (
    "utils", "base", "data_loader", "model", "logger", "trainer", "tester", "exporter", "pruner",
)  # fmt: skip
SCRIPTS = ("train", "test", "prune", "export", "new_project")
LIBRARIES = (
    "torch._dynamo",
    "torch.onnx._internal.exporter._core",
    "torchvision.transforms.v2",
    "onnxruntime",
    "onnxscript.function_libs.torch_lib.ops",
    "torch.export._trace",
    "torch._inductor.decomposition",
    "torch_pruning",
    "torch.utils.tensorboard",
    "torchcam.methods",
    "matplotlib.backends.backend_svg",
    "mpl_toolkits.mplot3d",
    "jinja2",
    "pydantic.json_schema",
    "networkx",
    "sympy",
    "numpy.ma",
)
LIMIT = 60.0  # seconds; what takes longer hangs
FORKS = 24  # processes that a trial may start
STACK = signal.SIGRTMIN  # makes a trial show where it is
HANDLED = ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "XCPU", "PIPE")


def preload() -> None:
    """Import what the scripts import, of libraries and of the project."""
    one_thread = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    os.environ |= dict.fromkeys(one_thread, "1") | {"PYDANTIC_DISABLE_PLUGINS": "__all__"}
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):  # one that belongs to a verb that was taken out
            importlib.import_module(name)
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    for script in SCRIPTS:
        if (ROOT / f"{script}.py").exists():
            importlib.import_module(script)


@dataclass
class Ended:
    """How a command ended.

    Attributes:
        code: the exit code as a shell gives it: 128 + n after signal n
        output: what it wrote to stdout and stderr
        seconds: how long it ran
        hung: whether it ran into the time limit, and was killed
    """

    code: int
    output: str
    seconds: float
    hung: bool

    def complaint(self, allowed: Iterable[int] = (0, 1, 2)) -> str | None:
        """What is wrong with this end, whatever was tried: a traceback, silence, another code."""
        if self.hung:
            stack = re.findall(r'File "(.*)", line (\d+) in', self.output)
            own = [f"{file}:{line}" for file, line in stack if str(ROOT) in file]
            where = own[0].removeprefix(f"{ROOT}/") if own else "somewhere"
            return f"hangs: after {LIMIT:g} s it is in {where}"
        if "Traceback (most recent call last)" in self.output:
            lines = [line for line in self.output.splitlines() if line.strip()]
            start = max(i for i, line in enumerate(lines) if line.startswith("Traceback"))
            own = [line.strip() for line in lines[start:] if str(ROOT) in line]
            error = next((line for line in lines[start + 1 :] if not line.startswith(" ")), "")
            where = own[-1].replace(f"{ROOT}/", "").split(", in")[0] if own else ""
            return f"a traceback: {error[:200]} ({where})"
        if self.code not in allowed:
            return f"ends with {self.code}: {self.output[-200:]!r}"
        if self.code in (1, 2) and not self.output.strip():
            return f"ends with {self.code} without a word"
        return None


class Job:
    """A command that runs in a fork of this process, in a process group of its own.

    Args:
        folder: its working folder; what it prints goes to a file beside that
        command: script and arguments: ["train.py", "-c", "config.json"]
        prepare: called in the fork before the script: limits, observers
    """

    count = 0

    def __init__(
        self, folder: Path, command: list[str], prepare: Iterable[Callable[[], object]] = ()
    ):
        Job.count += 1
        self.folder, self.command = folder, command
        self.file = folder.with_name(f"output-{Job.count}.txt")
        self.status: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.start_time = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            _run(folder, command, self.file, prepare)
        with contextlib.suppress(OSError):  # whoever is first; the fork does the same
            os.setpgid(self.pid, self.pid)

    def runs_for(self, seconds: float) -> bool:
        """Wait up to so many seconds; whether it is still running then."""
        until = time.monotonic() + seconds
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
                self.seconds = time.monotonic() - self.start_time
            elif time.monotonic() >= until:
                return True
            else:
                time.sleep(max(0.0, min(0.001, until - time.monotonic())))
        return False

    def send(self, signum: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.status is None:  # not waited for yet, so the number is still its own
            os.kill(self.pid, signum)

    def end(self, limit: float = LIMIT) -> Ended:
        """Wait until it ends, at most for `limit` seconds, and end what it has started, too."""
        hung = False
        try:
            hung = self.runs_for(limit)
            if hung:
                self.send(STACK)
                self.runs_for(0.5)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.runs_for(LIMIT)
        code = os.waitstatus_to_exitcode(self.status)
        if not self.file.exists():  # ended before it had begun
            self.file.touch()
        output = self.file.read_text(encoding="utf-8", errors="backslashreplace")
        return Ended(code if code >= 0 else 128 - code, output, self.seconds, hung)


def run(
    folder: Path,
    command: list[str],
    prepare: Iterable[Callable[[], object]] = (),
    limit: float = LIMIT,
) -> Ended:
    """Run a command to its end."""
    return Job(folder, command, prepare).end(limit)


def isolated(function: Callable, *arguments: Any) -> Any:
    """What `function` returns in a fork, where it may compute. Raises what it raises, as text."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            import torch

            torch.set_num_threads(1)
            answer = None, function(*arguments)
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}", traceback.format_exc()
        with open(writer, "wb") as file:
            pickle.dump(answer, file)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        content = file.read()
    os.waitpid(pid, 0)
    error, answer = pickle.loads(content)
    if error is not None:
        raise AssertionError(f"{error}\n{answer}")
    return answer


def open_streams() -> None:
    """Open stdout and stderr as Python does at its start."""
    settings = {"encoding": "utf-8", "buffering": 1, "closefd": False}
    sys.stdout = open(1, "w", **settings)  # noqa: SIM115
    sys.stderr = open(2, "w", errors="backslashreplace", **settings)  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr


def _run(folder: Path, command: list[str], file: Path, prepare: Iterable[Callable]) -> NoReturn:
    code: object = 1
    try:
        os.setpgid(0, 0)
        for name in HANDLED:  # whatever this process was started with, nohup for example
            signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python does
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        open_streams()
        import torch

        torch.set_num_threads(1)
        faulthandler.register(STACK, file=descriptor, chain=False)
        os.chdir(folder)
        os.environ["TMPDIR"] = tempfile.tempdir = str(file.parent)
        sys.argv = list(command)
        _limit_forks()
        for action in prepare:
            action()
        code = importlib.import_module(command[0].removesuffix(".py")).main(command[1:])
    except SystemExit as stop:
        code = stop.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            atexit._run_exitfuncs()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(int(code or 0))


def _limit_forks() -> None:
    """Processes are counted, as a machine's limit would do; root has none."""
    fork, left = os.fork, iter(range(FORKS))

    def counted() -> int:
        if next(left, None) is None:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()

    os.fork = counted
