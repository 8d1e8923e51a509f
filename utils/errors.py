"""What can go wrong, by who must act; `screen.run_command` prints it and sets the exit code."""

import contextlib
import errno
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from utils.files import ROOT

# of torch on the CPU (Linux, Windows) and on a GPU, and of workers, whose errors arrive as text
OUT_OF_MEMORY = r"out of memory|allocate memory|not enough memory|ALLOC_FAILED|MemoryError"

# what torch says of a GPU -> what a user can do; {0} is the pattern's group
GPU_ERRORS = {
    r"(\w+) does not have a deterministic implementation": (
        "engine.deterministic: torch has no deterministic {0} for GPUs; replace the layer or loss "
        "that needs it (see docs/compute.md), or set engine.deterministic to false"
    ),
    "device-side assert": (
        "a number is out of range on the GPU, mostly a label that the network has no output for: "
        "the same command with -d cpu says which"
    ),
}


class UserError(Exception):
    """The user must correct a config, a path, a file. Shown without a traceback, exit code 2."""


class ConfigError(UserError):
    """All errors of a configuration at once."""

    def __init__(self, origin: str, errors: list[str]):
        super().__init__(origin, errors)  # a copy in another process is made from these
        self.origin, self.errors = origin, errors

    def __str__(self) -> str:
        count = "an error" if len(self.errors) == 1 else f"{len(self.errors)} errors"
        return "\n  ".join([f"{self.origin} has {count}:", *self.errors])


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or does not fit the network."""


class RunError(Exception):
    """The run failed although the user made no mistake (the loss is NaN). Exit code 1."""


class Interrupted(Exception):  # noqa: N818 (not an error)
    """A signal to stop arrived and the state was saved. Exit code 128 + the signal's number."""

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(f"stopped by signal {signum}")


@contextlib.contextmanager
def explained_by(checkpoint: Path | None) -> Iterator[None]:
    """Around code that uses a checkpoint's content: the user's parts may hold anything.

    Raises CheckpointError, which names the file, for errors that nobody foresaw; None changes
    nothing.
    """
    try:
        yield
    except (UserError, RunError, Interrupted, OSError):
        raise
    except Exception as error:
        if checkpoint is None or is_out_of_memory(error):
            raise
        problem = f"{checkpoint} does not fit, or the code that uses it fails"
        raise CheckpointError(f"{problem}: {in_words(error)}") from error


def in_words(error: Exception) -> str:
    """An error of any code, with the place where it happened."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno}; "
        "--verbose shows the traceback)"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's text that is not empty; without one, the name of its type."""
    text = f"KeyError: {error}" if isinstance(error, KeyError) else str(error)  # else a bare key
    lines = (line for line in text.splitlines() if line.strip())
    return next(lines, type(error).__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the machine or of a GPU was full; no fault of the code that asked."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    is_torchs = isinstance(error, RuntimeError) and re.search(OUT_OF_MEMORY, str(error))
    return isinstance(error, MemoryError) or bool(is_torchs)


def gpu_error(error: BaseException) -> str | None:
    """A sentence for what torch says of a GPU; None if it is about something else."""
    if isinstance(error, RuntimeError):
        for pattern, sentence in GPU_ERRORS.items():
            if found := re.search(pattern, str(error)):
                return sentence.format(*found.groups())
    return None


@contextlib.contextmanager
def explained(problem: str, hint: str = "") -> Iterator[None]:
    """Any error inside becomes a sentence that names the user's line; but one for full memory."""
    try:
        yield
    except (UserError, RunError, Interrupted):
        raise
    except Exception as error:  # whatever a user's network, loss, metric or dataset does
        if is_out_of_memory(error):
            raise
        if sentence := gpu_error(error):
            raise UserError(sentence) from error
        _, caller, *frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if Path(f.filename).is_relative_to(ROOT)]
        own = [f for f in own if f.filename != caller.filename]
        place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
        raise UserError(f"{problem}: {first_line(error)}{place}{hint}") from error
