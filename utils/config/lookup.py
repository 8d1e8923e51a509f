"""From a name in a config to the class or function it means, and the arguments that takes.

A name is looked up among what the section's folders define, then in the section's libraries; a
dotted path ("timm.create_model") reaches everything else, if the user has written it himself. Files
in the folders are parsed, and only the one that defines the name is imported: a file that is broken
or slow to import does not get in the way.
"""

import ast
import contextlib
import difflib
import functools
import importlib
import inspect
import itertools
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.config.signature import Signature, get_hints, get_signature
from utils.files import ROOT

LISTED = 10  # names in a message, of each place that was searched


@dataclass(frozen=True)
class Source:
    """Where a section of the config finds what it names, and how that is called.

    Attributes:
        kind: dotted name of the class that every class named here derives from
        folders: folders ("model") or files ("model/loss.py") of the project, searched first
        without: files in them that belong to other sections or hold helpers
        libraries: modules searched next
        pattern: which of the libraries' names are meant, a regular expression
        given: keyword arguments that scripts supply; a config cannot set them
        offered: keyword arguments that scripts supply if the callee accepts them and the config is
            silent
        keys: keys beside "type" and "args", with their type hints
        nested: arguments that hold specs themselves, in a list or an object of lists -> their
            section
        functions: whether functions count too, as builders of what the section wants
        functional: True if a function is meant as a function of (output, target); one that is
            annotated to return `kind` still builds it
        default: the type if the section names none; its arguments then stand beside "type"
        inner: True if the section occurs only in other sections' arguments
        listed: True if the section is a list
        dotted: dotted paths that may be named beside what folders and libraries hold
    """

    kind: str
    folders: tuple[str, ...]
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
    listed: bool = False
    dotted: Container[str] = ()

    def split(self, spec: Any) -> tuple[str, dict]:
        """Type and arguments of "Name", {"type", "args"} or a section with a default type."""
        if not isinstance(spec, dict):
            return spec, {}
        if self.default:
            return spec.get("type", self.default), {k: v for k, v in spec.items() if k != "type"}
        args = spec.get("args")
        return spec.get("type", ""), args if isinstance(args, dict) else {}

    def find(self, name: str) -> Callable:
        """The class or function called `name`. Raises LookupError, which lists what there is."""
        own, (module, _, last) = self.own_names(), name.rpartition(".")
        if name in own or own.get(last) == module:
            return self._checked(getattr(_import(own[last]), last), name)
        for library in self.libraries:
            if module in ("", library):
                target = getattr(importlib.import_module(library), last, None)
                if self._is_meant(last, target):
                    return target
        if "." in name:
            if name not in self.dotted:
                raise LookupError(
                    f'"{name}" is named by a checkpoint or an exported file alone, and importing '
                    "it would run it: name it in config.json or a file in configs/, too, pass "
                    "-c FILE with a configuration of yours, or, if you trust whom the file comes "
                    "from, --trust"
                )
            return self._checked(_find_dotted(name), name)
        names = {", ".join(self.folders): [*self.select(own)]}
        names |= {library: self.library_names(library) for library in self.libraries}
        near = did_you_mean(name, itertools.chain(*names.values()), complete=False)
        listing = "; ".join(f"{place}: {_nearest(name, known)}" for place, known in names.items())
        searched = f"searched: {', '.join(names)}" if near else listing
        place = self.folders[0]
        place = place if place.endswith(".py") else f"a file in {place}/"
        broken = [problem for file in self._files() if (problem := _parse(file)[1])]
        message = f'there is no "{name}"{near} ({searched}); write a new one into {place}'
        raise LookupError("; ".join([message, *broken]))

    def own_names(self) -> dict[str, str]:
        """The public classes and functions that the project's files define: name -> module."""
        kinds = ast.ClassDef | ast.FunctionDef if self.functions else ast.ClassDef
        return {
            node.name: ".".join(file.relative_to(ROOT).with_suffix("").parts)
            for file in self._files()
            for node in _parse(file)[0].body
            if isinstance(node, kinds) and not node.name.startswith("_")
        }

    def select(self, names: Iterable[str]) -> dict[str, Callable]:
        """Those of the names that the section can use: a folder also holds helpers."""
        selected = {}
        for name in names:
            with contextlib.suppress(LookupError):
                selected[name] = self.find(name)
        return selected

    def library_names(self, *libraries: str) -> list[str]:
        """What these of the section's libraries offer."""
        return [
            name
            for library in libraries
            for name, target in vars(importlib.import_module(library)).items()
            if self._is_meant(name, target)
        ]

    def example(self) -> str:
        """One of the names that the section can hold."""
        known = [*self.select(self.own_names()), *self.library_names(*self.libraries)]
        return known[0] if known else "Name"

    def signature(self, target: Callable) -> Signature:
        """The keyword arguments of `target` that a config can set."""
        signature = get_signature(target)
        hidden = set(self.given)
        if not self.is_builder(target):
            hidden |= set(list(signature.parameters)[:2])  # the network's output and the target
        visible = {k: p for k, p in signature.parameters.items() if k not in hidden}
        return Signature(visible, signature.open)

    def is_builder(self, target: Callable) -> bool:
        """Whether `target` is called with the config's arguments, to give what the section wants;
        else it is a function of the network's output and the target.
        """
        returned = getattr(target, "__annotations__", {}).get("return")
        return not self.functional or inspect.isclass(target) or returned == self.kind

    def checked_result(self, built: object, target: Callable) -> object:
        """`built`, if it is what the section wants: functions return anything. Raises TypeError."""
        if not isinstance(built, self._kind()):
            returned, wanted = type(built).__name__, self._kind().__name__
            raise TypeError(f"{target.__name__} returns a {returned}, not a {wanted}")
        return built

    def _files(self) -> list[Path]:
        places = [ROOT / folder for folder in self.folders]
        files = [f for p in places for f in ([p] if p.suffix else sorted(p.glob("*.py")))]
        return [file for file in files if file.name not in self.without and file.exists()]

    def _is_meant(self, name: str, target: object) -> bool:
        if name.startswith("_") or not re.search(self.pattern, name):
            return False
        if inspect.isclass(target):
            return issubclass(target, self._kind()) and target is not self._kind()
        return inspect.isfunction(target) or (self.functional and inspect.isbuiltin(target))

    def _kind(self) -> type:
        return _resolve(self.kind)

    def _checked(self, target: object, name: str) -> Callable:
        # the kind may be a large library's: a function of one's own does not need it
        if inspect.isclass(target):
            if not issubclass(target, self._kind()):
                raise LookupError(f'"{name}" is not a {self._kind().__name__}')
            if inspect.isabstract(target):
                missing = ", ".join(sorted(target.__abstractmethods__))
                raise LookupError(f'"{name}" is not finished: it must still define {missing}')
        elif not (self.functions and inspect.isroutine(target)):
            wanted = "class or function" if self.functions else "class"
            raise LookupError(f'"{name}" is not a {wanted}')
        elif not self.functional:
            returned = get_hints(target).get("return")
            if inspect.isclass(returned) and not issubclass(returned, self._kind()):
                wanted = self._kind().__name__
                raise LookupError(f'"{name}" returns a {returned.__name__}, not a {wanted}')
        return target


@functools.cache  # it first looks for a module of that name, everywhere
def _resolve(name: str) -> type:
    return pkgutil.resolve_name(name)


def metric_name(spec: str | dict) -> str:
    """What a metric is called in logs: its "name", else the last part of its type."""
    if isinstance(spec, str):
        return spec
    return spec.get("name") or str(spec.get("type")).rpartition(".")[2]


def did_you_mean(name: str, known: Iterable[str], complete: bool = True) -> str:
    """'; did you mean "lr"?' for the nearest known name, or nothing if none is near.

    If the known names are not `complete`, as the user may have forgotten to write a class, only a
    probable typo is corrected. A short form counts as near: lr for learning_rate.
    """
    initials = "".join(word[0] for word in _words(name))
    ratios = {k: _ratio(name.lower(), k.lower()) for k in known if not k.startswith("_")}
    near = [k for k in ratios if _is_typo(name, k) or k.lower() == initials]
    if complete and not near:
        near = [k for k, ratio in ratios.items() if ratio >= 0.7]
    return f'; did you mean "{max(near, key=ratios.get)}"?' if near else ""


def _is_typo(name: str, known: str) -> bool:
    """Whether the names differ in case, underscores, the order of letters, or a letter of many.

    A name with other words or digits is another name: UNet is not LeNet, and resnet19 not resnet18.
    The end may be missing: hinge_embedding for hinge_embedding_loss.
    """
    words, known_words = _words(name), _words(known)
    text, known_text = "".join(words), "".join(known_words)
    if re.sub(r"\D", "", text) != re.sub(r"\D", "", known_text):
        return False
    if sorted(text) == sorted(known_text) or (len(text) > 5 and known_text.startswith(text)):
        return True
    # mae_loss is not mse_loss: at most one letter in eight differs
    is_like = len(words) == len(known_words) and text[:1] == known_text[:1]
    return is_like and _ratio(text, known_text) >= 0.87


def _ratio(text: str, other: str) -> float:
    return difflib.SequenceMatcher(None, text, other).ratio()


def _words(name: str) -> list[str]:
    """The words of a name in lower case: "CifarResNet" -> cifar, res, net; "lr_2" -> lr, 2."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_]+", name)
    return [word.lower() for word in words]


def _nearest(name: str, known: list[str]) -> str:
    """The known names, the nearest ones if there are many."""
    if len(known) > LISTED:
        nearest = difflib.get_close_matches(name, known, n=LISTED, cutoff=0.0)
        return f"{', '.join(nearest)} and {len(known) - LISTED} more"
    return ", ".join(known) or "nothing"


def _find_dotted(name: str) -> Any:
    try:
        target = pkgutil.resolve_name(name)
    except ValueError:
        raise LookupError(f'"{name}" is not a dotted path') from None
    except ImportError:
        package = name.partition(".")[0]
        raise LookupError(f'"{name}": no module named "{package}" is installed') from None
    except AttributeError as error:
        parent, missing = error.obj, error.name
        near = did_you_mean(missing, dir(parent))
        raise LookupError(f'"{name}": {parent.__name__} has no "{missing}"{near}') from None
    module = target.__name__ if inspect.ismodule(target) else getattr(target, "__module__", None)
    if str(module).partition(".")[0] in sys.stdlib_module_names:
        raise LookupError(f'"{name}" belongs to Python\'s own library, which a config cannot name')
    return target


@functools.cache
def _parse(file: Path) -> tuple[ast.Module, str]:
    """The file's syntax tree, and what is wrong with the file; the tree is empty then."""
    try:
        return ast.parse(file.read_text(encoding="utf-8")), ""
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        reason = getattr(error, "msg", error)
        return ast.Module([], []), f"{file.relative_to(ROOT)}{line} cannot be read: {reason}"


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever a user's file does when it is imported
        line = traceback.extract_tb(error.__traceback__)[-1].lineno
        file = module.replace(".", "/") + ".py"
        reason = f"{type(error).__name__}: {error} (line {line})"
        raise LookupError(f"{file} cannot be imported: {reason}") from error
