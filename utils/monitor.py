import math
from typing import Any

from utils.errors import UserError


class Monitor:
    """Watches one logged number: "min val_loss", "max val_accuracy" or "off".

    Args:
        rule: what to watch, and whether less or more is better
        patience: epochs without improvement after which `exhausted` is True; 0 means never
    """

    def __init__(self, rule: str = "off", patience: int = 0):
        self.mode, _, self.name = rule.partition(" ")
        self.patience = patience
        self.best: float | None = None
        self.best_epoch = self.waited = 0

    @property
    def exhausted(self) -> bool:
        return 0 < self.patience <= self.waited

    def update(self, epoch: int, log: dict[str, float]) -> bool:
        """True if this epoch is the best so far. NaN never is. Raises UserError where nothing has the watched name."""
        if self.mode == "off":
            return False
        if self.name not in log:
            raise UserError(f'trainer.monitor: no epoch logs "{self.name}"; there are: {", ".join(log)}')
        value = log[self.name]
        better = self.best is None or (value < self.best if self.mode == "min" else value > self.best)
        if better and not math.isnan(value):
            self.best, self.best_epoch, self.waited = value, epoch, 0
            return True
        self.waited += 1
        return False

    def state_dict(self) -> dict:
        rule = f"{self.mode} {self.name}".strip()
        return {"rule": rule, "best": self.best, "best_epoch": self.best_epoch, "waited": self.waited}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state`; from nothing where that watched another number."""
        if state["rule"] != f"{self.mode} {self.name}".strip():
            return
        self.best, self.best_epoch, self.waited = state["best"], state["best_epoch"], state["waited"]


def plain_numbers(log: dict[str, Any]) -> dict[str, float]:
    """A log as plain floats, which any file can hold. Raises UserError for what is no number."""
    try:
        return {name: float(value) for name, value in log.items()}
    except (TypeError, ValueError) as error:
        raise UserError(f"_train_epoch and _valid_epoch should log one number for each name: {error}") from error
