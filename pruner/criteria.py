"""How important a channel is: torch-pruning's criteria by name, or your own class in pruner/."""

import dataclasses
import inspect
from collections.abc import Container
from typing import TYPE_CHECKING

from utils.config.lookup import Source
from utils.errors import UserError

if TYPE_CHECKING:
    from torch_pruning.pruner.importance import Importance

PATH, LIBRARY = "pruner.args.importance", "torch_pruning.pruner.importance"
REFUSED = {
    "OBDCImportance": "torch-pruning 1.6 cannot prepare it for networks with residual connections",
    "GroupHessianImportance": "in torch-pruning 1.6 only the last sample counts",
    "HessianImportance": "in torch-pruning 1.6 only the last sample counts",
    "ActivationImportance": "in torch-pruning 1.6 it removes nothing, and does not say so",
}
PATTERN = f"^(?!({'|'.join(REFUSED)})$).*Importance$"
SOURCE = Source(
    f"{LIBRARY}.Importance", ("pruner",), (), (LIBRARY,), pattern=PATTERN, functions=False
)
USABLE = "MagnitudeImportance, TaylorImportance, BNScaleImportance, FPGMImportance, LAMPImportance"


def build_importance(spec: str | dict, dotted: Container[str] = ()) -> "Importance":
    """The criterion "Name" or {"type": "Name", "args": {...}}, which rates the channels of a group;
    one from elsewhere if its dotted path is in `dotted`.

    Raises UserError for an unknown name, a criterion that does not work, and unknown arguments.
    """
    name, args = SOURCE.split({"type": None} | spec if isinstance(spec, dict) else spec)
    if not isinstance(name, str) or not isinstance(args, dict):
        raise UserError(f'{PATH}: should be a name or {{"type": "Name", "args": {{...}}}}')
    if name in REFUSED:
        raise UserError(f"{PATH}: {name} does not work: {REFUSED[name]}. Use one of {USABLE}")
    try:
        cls = dataclasses.replace(SOURCE, dotted=dotted).find(name)
    except LookupError as error:
        raise UserError(f"{PATH}: {error.args[0]}") from None
    accepted = inspect.signature(cls).parameters
    if unknown := args.keys() - accepted.keys():
        accepts = ", ".join(accepted) or "no arguments"
        raise UserError(f'{PATH}: {name} takes no "{min(unknown)}"; it takes {accepts}')
    return cls(**args)


def needs_gradients(importance: "Importance") -> bool:
    """Whether the criterion reads the loss's gradients."""
    from torch_pruning.pruner.importance import GroupTaylorImportance

    return getattr(importance, "needs_gradients", isinstance(importance, GroupTaylorImportance))
