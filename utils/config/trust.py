"""Which dotted paths the configuration of a checkpoint or an exported file may name.

To import a module is to run it. So a path beyond a section's folder and libraries is looked up only
if the user has written it himself; this is decided here for all scripts.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from utils.config.config_file import read_layers
from utils.errors import UserError
from utils.files import ROOT


class Trust:
    """Contains the texts in config.json, in other JSON files beside it and in configs/, and what
    else the user wrote.

    Args:
        written: what he wrote elsewhere
        file: the configuration that -c names
        everything: contain every text, as --trust says
    """

    def __init__(self, written: object, file: str | None = None, everything: bool = False):
        self.written, self.file, self.everything = frozenset(texts(written)), file, everything
        self.known: dict[str, bool] = {}

    def __contains__(self, name: str) -> bool:
        if name not in self.known:
            self.known[name] = self.everything or name in self.written or self._is_in_files(name)
        return self.known[name]

    def _is_in_files(self, name: str) -> bool:
        own = [Path(self.file)] if self.file else []
        for file in (*own, *ROOT.glob("*.json"), *ROOT.glob("configs/**/*.json")):
            with contextlib.suppress(UserError, OSError, RecursionError):  # broken: names nothing
                # to parse all of them would take seconds
                is_near = file in own or name.encode() in file.read_bytes()
                if is_near and name in texts(read_layers(file)[1]):
                    return True
        return False


def texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts(part)
