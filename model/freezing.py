"""Freezing: which parameters stay as they are, and until when."""

import re

from torch import nn

from model.heads import find_head
from utils.errors import UserError


class Freezing:
    """The config's arch.freeze and arch.unfreeze_at.

    Args:
        rule: "backbone" for all but the head, or regular expressions that match parameter names;
            None freezes nothing
        until: the epoch from which everything trains; None for never
    """

    def __init__(self, rule: str | list[str] | None = None, until: int | None = None):
        self.rule, self.until = rule, until

    def apply(self, network: nn.Module, epoch: int) -> bool:
        """Freeze and unfreeze parameters as `epoch` needs it; return whether that changed any.

        Raises UserError if a pattern matches no parameter, or if all parameters are frozen.
        """
        if self.rule is None:
            return False
        unfrozen = self.until is not None and epoch >= self.until
        frozen = set() if unfrozen else self._frozen_names(network)
        changed = False
        for name, parameter in network.named_parameters():
            changed |= parameter.requires_grad == (name in frozen)
            parameter.requires_grad_(name not in frozen)
        return changed

    def _frozen_names(self, network: nn.Module) -> set[str]:
        names = [name for name, _ in network.named_parameters()]
        if self.rule == "backbone":
            head = f"{find_head(network)}."
            frozen = {name for name in names if not name.startswith(head)}
        else:
            patterns = [self.rule] if isinstance(self.rule, str) else self.rule
            frozen = {n for pattern in patterns for n in match_names(pattern, names, "arch.freeze")}
        if len(frozen) == len(names):
            raise UserError("arch.freeze: no parameter is left to train")
        return frozen


def match_names(pattern: str, names: list[str], key: str) -> set[str]:
    """The names that the regular expression matches anywhere.

    Raises UserError, which names the config's `key`, if it matches none or is not valid.
    """
    try:
        matched = {name for name in names if re.search(pattern, name)}
    except re.error as error:
        raise UserError(f'{key}: "{pattern}" is not a regular expression: {error}') from None
    if not matched:
        examples = ", ".join(names[:3]) + (f" ... {names[-1]}" if len(names) > 3 else "")
        raise UserError(f'{key}: no parameter matches "{pattern}"; there are {examples}')
    return matched


def set_training_mode(network: nn.Module) -> None:
    """Set training mode, but leave frozen modules in evaluation mode.

    Their batch norms would otherwise keep updating their statistics.
    """
    network.train()
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
