import math
import re

from utils.config.lookup import did_you_mean
from utils.errors import UserError

STATE = ("rule", "best", "best_epoch", "waited", "latest")
ALWAYS = ("lr", "seconds", "samples_per_second")  # logged beside what is measured


class Monitor:
    """Watches one logged number: "min val_loss", "max val_accuracy" or "off".

    Args:
        rule: the number, and whether less or more is better
        patience: epochs without improvement after which `exhausted` is True; 0 means never
        latest: of equally good epochs the latest is the best, as it has learned for longer; False
            for the first, as earlier versions had it, whose runs go on as they began
    """

    def __init__(self, rule: str = "off", patience: int = 0, latest: bool = True):
        self.rule, self.patience, self.latest = rule, patience, latest
        self.mode, _, self.name = rule.partition(" ")
        self.best: float | None = None
        self.best_epoch = self.waited = 0

    def doubt(self) -> str | None:
        """A sentence if the rule watches a well-known number in the wrong direction."""
        wrong = {"min": r"acc|auroc|f1|f_1|recall|precision|iou|r2", "max": r"loss|error|mse|mae"}
        if self.mode in wrong and re.search(wrong[self.mode], self.name.lower()):
            other = "max" if self.mode == "min" else "min"
            return f'trainer.monitor: "{self.rule}" keeps the worst; "{other} {self.name}"?'
        return None

    def check(self, logged: list[str]) -> None:
        """Raises UserError if the watched number is not among those that are logged."""
        if self.mode != "off" and self.name not in (*logged, *ALWAYS):
            near = did_you_mean(self.name, logged)
            raise UserError(
                f'trainer.monitor: nothing is called "{self.name}"{near}; logged are '
                f"{', '.join(logged)}"
            )

    @property
    def exhausted(self) -> bool:
        return 0 < self.patience <= self.waited

    def update(self, epoch: int, log: dict[str, float]) -> bool:
        """Whether this epoch is the best so far; patience waits for a better one, not for an
        equal one. Raises UserError if `log` lacks the name.
        """
        if self.mode == "off":
            return False
        if self.name not in log:
            raise UserError(
                f'trainer.monitor: no epoch logs "{self.name}"; logged are {", ".join(log)}'
            )
        value, best = log[self.name], self.best
        if math.isnan(value):
            self.waited += 1
            return False
        is_better = best is None or (value < best if self.mode == "min" else value > best)
        self.waited = 0 if is_better else self.waited + 1
        if is_better or (value == best and self.latest):
            self.best, self.best_epoch = value, epoch
            return True
        return False

    def state_dict(self) -> dict:
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state`; or ignore it, if it watched another number."""
        if state["rule"] == self.rule:
            known = {"latest": False} | state
            vars(self).update({name: known[name] for name in STATE})
