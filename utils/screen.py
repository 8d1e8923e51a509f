"""The screen: it may show no Japanese, or be closed while a run goes on."""

import os
import sys
from io import TextIOWrapper


def open_screen() -> None:
    """Let stdout and stderr take any text: what their encoding lacks is shown as \\u4e0d."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115 (closed by >&-)
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, stream)


def leave_screen() -> None:
    """Show what is not yet shown, if anybody reads it: Python would end with an error."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # of a pipe into `head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
