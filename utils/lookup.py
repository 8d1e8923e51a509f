"""From a name in a config to the class or function it means, and to the arguments that takes.

A name is looked for among what the section's folder defines, then in the section's libraries; a dotted
path ("timm.create_model") reaches everything else. The folders' files are listed by parsing them, and only
the one that defines the name is imported: a file that is broken, or slow to import, stays out of the way.
"""

import ast
import collections.abc
import difflib
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError

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
        known = [*own, *self.library_names()]
        listing = f"{self.own} has {', '.join(own) or 'nothing'}" + (
            f"; {' and '.join(self.libraries)} are searched too" if self.libraries else ""
        )
        raise LookupError(f'there is no "{name}"{did_you_mean(name, known) or f" ({listing})"}')

    def own_names(self) -> dict[str, str]:
        """The public classes and functions our files define: name -> module."""
        place = ROOT / self.own
        kinds = ast.ClassDef | ast.FunctionDef if self.functions else ast.ClassDef
        files = [place] if place.suffix else sorted(place.glob("*.py"))
        return {
            node.name: ".".join(file.relative_to(ROOT).with_suffix("").parts)
            for file in files
            if file.name not in self.without and file.exists()
            for node in _parse(file).body
            if isinstance(node, kinds) and not node.name.startswith("_")
        }

    def library_names(self) -> list[str]:
        """What the section's libraries have of its kind."""
        return [
            name
            for library in self.libraries
            for name, found in vars(importlib.import_module(library)).items()
            if self._is_meant(name, found)
        ]

    def signature(self, found: Callable) -> "Signature":
        """The keyword arguments a config can give to `found`; without those the scripts supply."""
        signature = signature_of(found)
        hidden = set(self.given)
        if self.functional and not inspect.isclass(found):
            hidden |= set(list(signature.parameters)[:2])  # the network's output and the target
        return Signature({k: p for k, p in signature.parameters.items() if k not in hidden}, signature.open)

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
        # A checkpoint from elsewhere carries a config: it must not be a way to call os.system.
        if parts[0] in sys.stdlib_module_names:
            raise LookupError(f'"{name}" is Python\'s own library, which a config cannot name')
        module = None
        for depth in range(1, len(parts)):
            try:
                module = importlib.import_module(".".join(parts[:depth]))
            except ImportError:
                break
        if module is None:
            raise LookupError(f'"{name}": no module named "{parts[0]}" is installed')
        found = module
        for part in parts[module.__name__.count(".") + 1 :]:
            if not hasattr(found, part):
                raise LookupError(f'"{name}": {found.__name__} has no "{part}"{did_you_mean(part, dir(found))}')
            found = getattr(found, part)
        return found


@dataclass(frozen=True)
class Signature:
    """Keyword arguments by name; `open` where the callee takes others too and they cannot be checked."""

    parameters: dict[str, inspect.Parameter]
    open: bool


def signature_of(found: Callable) -> Signature:
    """What `found` takes by keyword. A constructor's **kwargs mean the arguments of its base class."""
    parameters: dict[str, inspect.Parameter] = {}
    for call in _constructors(found) if inspect.isclass(found) else [found]:
        try:
            signature, hints = inspect.signature(call), _hints(call)
        except (ValueError, TypeError):  # written in C, without a signature
            return Signature(parameters, True)
        passed_on = False
        for position, (name, parameter) in enumerate(signature.parameters.items()):
            if parameter.kind is parameter.VAR_KEYWORD:
                passed_on = True
            elif parameter.kind is not parameter.VAR_POSITIONAL and not (call is not found and position == 0):
                parameters.setdefault(name, parameter.replace(annotation=hints.get(name, Any)))
        if not passed_on:
            return Signature(parameters, False)
    return Signature(parameters, True)


def did_you_mean(name: str, known: collections.abc.Iterable[str], cutoff: float = 0.6) -> str:
    """'; did you mean "lr"?', or nothing where no known name is near. Abbreviations count as near."""
    known = [k for k in known if not k.startswith("_")]
    initials = [k for k in known if k.lower() == "".join(word[:1] for word in name.lower().split("_"))]
    near = initials or difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    folded = [k for k in known if k.lower() == name.lower()]
    return f'; did you mean "{(folded or near)[0]}"?' if folded or near else ""


def _constructors(found: type) -> list[Callable]:
    """The constructors that a call of the class runs through, the nearest first."""
    own = [c.__dict__["__init__"] for c in found.__mro__ if "__init__" in c.__dict__ and c is not object]
    return own if own and "__new__" not in found.__dict__ else [found.__new__]


def _hints(call: Callable) -> dict[str, Any]:
    """Resolved type hints. Libraries import names like Sequence for type checkers only: those are supplied here."""
    names = {k: v for module in (typing, collections.abc) for k, v in vars(module).items() if k[:1].isupper()}
    try:
        return typing.get_type_hints(call, localns=names, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def _parse(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UserError(f"{file.relative_to(ROOT)}{line}: {getattr(error, 'msg', error)}") from error


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{module.replace('.', '/')}.py cannot be imported: {error}") from error


def spec_args(source: Source, spec: Any) -> tuple[str, Any]:
    """Type and arguments of "Name", {"type": "Name", "args": {...}}, or a flat section that has a default type."""
    if isinstance(spec, str):
        return spec, {}
    if source.default:
        return spec.get("type", source.default), {key: value for key, value in spec.items() if key != "type"}
    return spec["type"], spec.get("args", {})


def metric_name(spec: Any) -> str:
    """What a metric is called in logs: its "name", else the last part of its type."""
    return spec if isinstance(spec, str) else spec.get("name") or str(spec.get("type")).rpartition(".")[2]
