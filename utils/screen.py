"""What surrounds the work of every command: screen, errors as sentences, exit code."""

import argparse
import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable
from io import TextIOWrapper
from typing import Any

from utils.engine import launch
from utils.errors import Interrupted, RunError, UserError

# without memory, Python itself can fail to say why an import failed
FULL = MemoryError, SystemError


class ExitCode(int):
    """What a command returns: 0 for success.

    Attributes:
        result: what a script found or made, see its main(); None if it failed, or if several
            processes trained
    """

    result: Any

    def __new__(cls, code: int = 0, result: object = None) -> "ExitCode":
        exit_code = super().__new__(cls, code)
        exit_code.result = result
        return exit_code


def run_command(
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
    work: Callable[[argparse.Namespace], ExitCode | None],
) -> ExitCode:
    """Parse the command line and do the work; an error is shown as a sentence."""
    _open_screen()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter  # keeps the lines as they are
    arguments = parser.parse_args(argv)
    try:
        code = work(arguments)
        return ExitCode() if code is None else code
    except (UserError, RunError, OSError, RecursionError, ImportError, *FULL) as error:
        if getattr(arguments, "verbose", False):
            traceback.print_exc()
        message = f"{parser.prog}: {_describe(error)}"
        if launch.is_first_to_say(message):
            with contextlib.suppress(OSError):  # the screen is gone
                print(message, file=sys.stderr, flush=True)
        is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        return ExitCode(1 if is_full or isinstance(error, (RunError, *FULL)) else 2)
    except Interrupted as stop:
        return ExitCode(128 + stop.signum)
    except KeyboardInterrupt:
        return ExitCode(130)
    finally:
        _leave_screen()


def _describe(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the system'}: {error.strerror}"
    if isinstance(error, RecursionError):
        return "the configuration is nested too deeply"
    if isinstance(error, ImportError):
        return f"{error}; is everything in requirements.txt installed?"
    if isinstance(error, FULL):
        return f"the memory is probably full: {error}".removesuffix(": ")
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


def _open_screen() -> None:
    """Let stdout and stderr take any text: what their encoding lacks is shown as \\u4e0d."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115 (closed by >&-)
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, stream)


def _leave_screen() -> None:
    """Show what is not yet shown, if anybody reads it: Python would end with an error."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # of a pipe into `head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
