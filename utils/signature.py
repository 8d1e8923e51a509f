"""What a class or a function takes by keyword, with its type hints, through all the constructors a call runs through."""

import collections.abc
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Signature:
    """Keyword arguments by name; `open` where the callee takes others too and they cannot be checked."""

    parameters: dict[str, inspect.Parameter]
    open: bool


def signature_of(found: Callable) -> Signature:
    """What `found` takes by keyword.

    A constructor's **kwargs mean the arguments of its base class, a function's those of the class that its hint says
    it returns (torchvision's builders), of which it may give some itself.
    """
    if inspect.isclass(found):
        return _merged(_constructors(found))
    signature, built = _merged([found]), _hints(found).get("return")
    if not signature.open or not inspect.isclass(built) or built.__module__.startswith("torch.nn."):
        return signature
    inner = signature_of(built)
    optional = {name: p.replace(default=None) if p.default is p.empty else p for name, p in inner.parameters.items()}
    return Signature(optional | signature.parameters, inner.open)


def _merged(calls: list[Callable]) -> Signature:
    """The keyword arguments of the first callable, and as long as they end in **kwargs, of the next."""
    parameters: dict[str, inspect.Parameter] = {}
    for call in calls:
        try:
            signature, hints = inspect.signature(call), _hints(call)
        except (ValueError, TypeError):  # written in C, without a signature
            return Signature(parameters, True)
        passed_on = False
        for position, (name, parameter) in enumerate(signature.parameters.items()):
            if parameter.kind is parameter.VAR_KEYWORD:
                passed_on = True
            elif parameter.kind is not parameter.VAR_POSITIONAL and not (position == 0 and name in ("self", "cls")):
                parameters.setdefault(name, parameter.replace(annotation=hints.get(name, Any)))
        if not passed_on:
            return Signature(parameters, False)
    return Signature(parameters, True)


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
