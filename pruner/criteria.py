"""What a channel is worth: torch-pruning's criteria, by their names there, or one of your own in this folder."""

import inspect
from typing import Any

from utils.errors import UserError
from utils.lookup import Source

REFUSED = {
    "OBDCImportance": "torch-pruning 1.6 cannot prepare it for networks with residual connections",
    "GroupHessianImportance": "in torch-pruning 1.6 only the last sample counts",
    "HessianImportance": "in torch-pruning 1.6 only the last sample counts",
    "ActivationImportance": "in torch-pruning 1.6 it removes nothing, without a word",
}
SOURCE = Source("torch_pruning.pruner.importance.Importance", "pruner", libraries=("torch_pruning.pruner.importance",),
                pattern=f"^(?!({'|'.join(REFUSED)})$).*Importance$", functions=False)  # fmt: skip
INSTEAD = "MagnitudeImportance, TaylorImportance, BNScaleImportance, FPGMImportance, LAMPImportance, RandomImportance"


def build_importance(spec: str | dict) -> Any:
    """The criterion that "Name" or {"type": "Name", "args": {...}} means: a function from a group to its channels' worth.

    Raises UserError for a name that is none, one that does not work, and for arguments it does not take.
    """
    name, arguments = (spec, {}) if isinstance(spec, str) else (spec.get("type"), spec.get("args", {}))
    path = "pruner.args.importance"
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise UserError(f'{path}: should be a name or {{"type": "Name", "args": {{...}}}}')
    if name in REFUSED:
        raise UserError(f"{path}: {name} cannot be relied on: {REFUSED[name]}. There are {INSTEAD}")
    try:
        found = SOURCE.find(name)
    except LookupError as error:
        raise UserError(f"{path}: {error.args[0]}") from None
    takes = inspect.signature(found).parameters
    if unknown := arguments.keys() - takes.keys():
        raise UserError(f'{path}: {name} takes no "{min(unknown)}"; it takes {", ".join(takes) or "no arguments"}')
    return found(**arguments)


def needs_gradients(importance: Any) -> bool:
    """Whether the criterion looks at the loss's gradients."""
    from torch_pruning.pruner.importance import GroupTaylorImportance

    return getattr(importance, "needs_gradients", isinstance(importance, GroupTaylorImportance))
