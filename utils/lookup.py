"""From a name in a config to the class or function it means, and to the arguments that takes.

A name is looked for among what the section's folder defines, then in the section's libraries; a dotted
path ("timm.create_model") reaches everything else. The folders' files are listed by parsing them, and only
the one that defines the name is imported: a file that is broken, or slow to import, stays out of the way. Where none
does, all are, to say what there is instead.
"""

import ast
import collections.abc
import contextlib
import difflib
import functools
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.signature import Signature, signature_of

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Source:
    """Where a section of the config finds what it names, and how that is called.

    Attributes:
        kind: dotted name of the class that every class named here derives from
        own: folder ("model") or file ("model/loss.py") of ours that is searched first
        without: files of that folder that belong to other sections
        libraries: modules searched next
        pattern: which of the libraries' names are meant, a regular expression
        given: keyword arguments the scripts supply; a config cannot set them
        offered: keyword arguments the scripts supply where the callee takes them and the config is silent
        keys: keys beside "type" and "args", with their type hints
        nested: arguments that hold specs themselves, in a list or in an object of lists -> the section of those
        functions: whether functions count too, as builders of what the section wants
        functional: True if a function found is meant as a function of (output, target), not as a builder
        default: the type meant where the section names none
        inner: True if it stands in other sections' arguments only, not at the top of a config
    """

    kind: str
    own: str
    without: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    pattern: str = ""
    given: tuple[str, ...] = ()
    offered: tuple[str, ...] = ()
    keys: dict[str, Any] = field(default_factory=dict)
    nested: dict[str, str] = field(default_factory=dict)
    functions: bool = True
    functional: bool = False
    default: str | None = None
    inner: bool = False

    def find(self, name: str) -> Callable:
        """The class or function called `name`. Raises LookupError, which says what there is instead."""
        own = self.own_names()
        if name in own:
            return self._checked(getattr(_import(own[name]), name), name)
        for library in self.libraries:
            found = getattr(importlib.import_module(library), name, None)
            if found is not None and self._is_meant(name, found):
                return found
        if "." in name:
            return self._checked(self._find_dotted(name), name)
        meant, others = self.named(self.own_names()), self.library_names()
        broken = [problem for file in self._files() if (problem := _parse(file)[1])]
        listing = f"there are {', '.join(others)}"
        if meant or not others:
            libraries = f"; searched too: {', '.join(self.libraries)}" if self.libraries else ""
            listing = f"{self.own} has {', '.join(meant) or 'nothing'}{libraries}"
        near = did_you_mean(name, [*meant, *others]) or f" ({listing})"
        raise LookupError("; ".join([f'there is no "{name}"{near}', *broken]))

    def own_names(self) -> dict[str, str]:
        """The public classes and functions our files define: name -> module."""
        kinds = ast.ClassDef | ast.FunctionDef if self.functions else ast.ClassDef
        return {
            node.name: ".".join(file.relative_to(ROOT).with_suffix("").parts)
            for file in self._files()
            for node in _parse(file)[0].body
            if isinstance(node, kinds) and not node.name.startswith("_")
        }

    def named(self, names: collections.abc.Iterable[str]) -> dict[str, Callable]:
        """Those of the names that the section can name; a folder has helpers, and other sections' classes, too."""
        found = {}
        for name in names:
            with contextlib.suppress(LookupError):
                found[name] = self.find(name)
        return found

    def _files(self) -> list[Path]:
        place = ROOT / self.own
        files = [place] if place.suffix else sorted(place.glob("*.py"))
        return [file for file in files if file.name not in self.without and file.exists()]

    def library_names(self) -> list[str]:
        """What the section's libraries have of its kind."""
        return [
            name
            for library in self.libraries
            for name, found in vars(importlib.import_module(library)).items()
            if self._is_meant(name, found)
        ]

    def signature(self, found: Callable) -> Signature:
        """The keyword arguments a config can give to `found`; without those the scripts supply."""
        signature = signature_of(found)
        hidden = set(self.given)
        if self.functional and not inspect.isclass(found):
            hidden |= set(list(signature.parameters)[:2])  # the network's output and the target
        return Signature({k: p for k, p in signature.parameters.items() if k not in hidden}, signature.open)

    def checked_result(self, built: Any, found: Callable) -> Any:
        """`built` itself, if it is what the section wants; a function can give anything. Raises TypeError."""
        if not isinstance(built, self._kind()):
            raise TypeError(f"{found.__name__} gives a {type(built).__name__}, not a {self._kind().__name__}")
        return built

    def _is_meant(self, name: str, found: Any) -> bool:
        if name.startswith("_") or not re.search(self.pattern, name):
            return False
        if inspect.isclass(found):
            return issubclass(found, self._kind()) and found is not self._kind()
        return inspect.isfunction(found) or (self.functional and inspect.isbuiltin(found))

    def _kind(self) -> type:
        module, name = self.kind.rsplit(".", 1)
        return getattr(importlib.import_module(module), name)

    def _checked(self, found: Any, name: str) -> Callable:
        if inspect.isclass(found):
            if not issubclass(found, self._kind()):
                raise LookupError(f'"{name}" is no {self._kind().__name__}')
            if inspect.isabstract(found):
                missing = ", ".join(sorted(found.__abstractmethods__))
                raise LookupError(f'"{name}" is not finished: it must still define {missing}')
        elif not (self.functions and inspect.isroutine(found)):
            raise LookupError(f'"{name}" is no class' + (" and no function" if self.functions else ""))
        return found

    def _find_dotted(self, name: str) -> Any:
        parts = name.split(".")
        if not all(part.isidentifier() for part in parts):
            raise LookupError(f'"{name}" is no dotted path')
        module = None
        for depth in range(1, len(parts)):
            try:
                module = importlib.import_module(".".join(parts[:depth]))
            except ImportError:
                break
        if module is None:
            raise LookupError(f'"{name}": no module named "{parts[0]}" is installed')
        found = _not_pythons_own(module, name)
        for part in parts[module.__name__.count(".") + 1 :]:
            if not hasattr(found, part):
                raise LookupError(f'"{name}": {found.__name__} has no "{part}"{did_you_mean(part, dir(found))}')
            found = _not_pythons_own(getattr(found, part), name)
        return found


def did_you_mean(name: str, known: collections.abc.Iterable[str], cutoff: float = 0.6) -> str:
    """'; did you mean "lr"?', or nothing where no known name is near. Abbreviations count as near."""
    known = [k for k in known if not k.startswith("_")]
    initials = [k for k in known if k.lower() == "".join(word[:1] for word in name.lower().split("_"))]
    near = initials or difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    folded = [k for k in known if k.lower() == name.lower()]
    return f'; did you mean "{(folded or near)[0]}"?' if folded or near else ""


def _not_pythons_own(found: Any, name: str) -> Any:
    """`found`, unless it is of Python's own library: a checkpoint from elsewhere carries a config, which should not
    be an easy way to os.system. No protection from other installed packages: those can do as much.
    """
    module = found.__name__ if inspect.ismodule(found) else getattr(found, "__module__", None)
    if str(module).partition(".")[0] in sys.stdlib_module_names:
        raise LookupError(f'"{name}" is Python\'s own library, which a config cannot name')
    return found


def _parse(file: Path) -> tuple[ast.Module, str]:
    """What a file says, and what is wrong with it: then it says nothing, and does not stop what others say."""
    return _parsed(file, file.stat().st_mtime_ns)


@functools.cache
def _parsed(file: Path, changed: int) -> tuple[ast.Module, str]:
    try:
        return ast.parse(file.read_text(encoding="utf-8")), ""
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        return ast.Module([], []), f"{file.relative_to(ROOT)}{line} cannot be read: {getattr(error, 'msg', error)}"


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever a file of the user's does when it is imported
        line = traceback.extract_tb(error.__traceback__)[-1].lineno
        file = module.replace(".", "/") + ".py"
        raise LookupError(f"{file} cannot be imported: {type(error).__name__}: {error} (line {line})") from error
