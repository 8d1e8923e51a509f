"""What a class or function accepts by keyword, with type hints, through all constructors that a
call runs.
"""

import collections.abc
import inspect
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


class Signature(NamedTuple):
    """Keyword arguments by name; `open` if there are others, which cannot be checked."""

    parameters: dict[str, inspect.Parameter]
    open: bool


def get_signature(target: Callable) -> Signature:
    """What `target` accepts by keyword.

    The **kwargs of a constructor are the arguments of its base class; those of a function are the
    arguments of the class that it is annotated to return (torchvision's builders), some of which it
    may supply itself.
    """
    if inspect.isclass(target):
        # the constructors that calling the class runs, the nearest first
        classes = [c for c in target.__mro__ if "__init__" in vars(c) and c is not object]
        calls = [vars(c)["__init__"] for c in classes]
        if not calls or "__new__" in vars(target):
            calls = [target.__new__]
        # object's own constructor says that it takes anything, and takes nothing
        return Signature({}, False) if calls == [object.__new__] else _merge(calls)
    signature, built = _merge([target]), get_hints(target).get("return")
    if not signature.open or not inspect.isclass(built) or built.__module__.startswith("torch.nn."):
        return signature
    inner = get_signature(built)
    optional = {
        name: parameter.replace(default=None) if parameter.default is parameter.empty else parameter
        for name, parameter in inner.parameters.items()
    }
    return Signature(optional | signature.parameters, inner.open)


def _merge(calls: list[Callable]) -> Signature:
    """The keyword arguments of the first callable and, while they end in **kwargs, the next."""
    parameters: dict[str, inspect.Parameter] = {}
    for call in calls:
        try:
            own, hints = inspect.signature(call).parameters, get_hints(call)
        except (ValueError, TypeError):  # written in C, without a signature
            return Signature(parameters, True)
        kinds = [parameter.kind for parameter in own.values()]
        for position, (name, parameter) in enumerate(own.items()):
            is_self = position == 0 and name in ("self", "cls")
            if not is_self and parameter.kind not in VARIADIC:
                parameters.setdefault(name, parameter.replace(annotation=hints.get(name, Any)))
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            return Signature(parameters, False)
    return Signature(parameters, True)


def get_hints(call: Callable) -> dict[str, Any]:
    """Resolved type hints; names that libraries import for type checkers only are supplied."""
    modules = (typing, collections.abc)
    names = {k: v for module in modules for k, v in vars(module).items() if k[:1].isupper()}
    try:
        return typing.get_type_hints(call, localns=names, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}
