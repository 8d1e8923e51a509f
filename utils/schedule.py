import inspect
import warnings
from typing import Any

from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from utils.errors import UserError


class Schedule:
    """Steps a torch scheduler when it should be: after each optimizer step, or after each epoch.

    Args:
        scheduler: any of torch.optim.lr_scheduler, or None, for a rate that stays as it is
        interval: "step" or "epoch"
        monitored: (mode, name) of what the trainer watches; ReduceLROnPlateau watches it too where the modes
            agree, else val_loss

    Raises UserError where ReduceLROnPlateau would wait for the wrong direction.
    """

    def __init__(self, scheduler: Any, interval: str = "epoch", monitored: tuple[str, str] = ("off", "")):
        self.scheduler = scheduler
        self.interval = interval
        self.watched = None
        if isinstance(scheduler, ReduceLROnPlateau):
            mode, name = monitored
            if interval == "step":
                raise UserError("lr_scheduler.interval: ReduceLROnPlateau needs a whole epoch's numbers")
            if mode == scheduler.mode:
                self.watched = name
            elif scheduler.mode == "min":
                self.watched = "val_loss"
            else:
                raise UserError('lr_scheduler.args.mode: "max" needs a "max ..." in trainer.monitor, to know what to watch')

    def after_step(self) -> None:
        if self.scheduler is not None and self.interval == "step" and not self._at_end():
            self._step()

    def after_epoch(self, log: dict[str, float]) -> None:
        if self.scheduler is None or self.interval != "epoch" or self._at_end():
            return
        if self.watched is None:
            self._step()
        else:
            self._step(log[self.watched] if self.watched in log else log["loss"])

    def state_dict(self) -> dict | None:
        return None if self.scheduler is None else self.scheduler.state_dict()

    def load_state_dict(self, state: dict | None) -> None:
        if self.scheduler is not None and state is not None:
            self.scheduler.load_state_dict(state)

    def _step(self, *watched: float) -> None:
        with warnings.catch_warnings():
            # torch misses the optimizer steps that were taken before a resume
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.scheduler.step(*watched)

    def _at_end(self) -> bool:
        # OneCycleLR refuses to be stepped past its end, where a run that was made longer on resume arrives:
        # the rate then stays at its last value.
        return isinstance(self.scheduler, OneCycleLR) and self.scheduler.last_epoch + 1 >= self.scheduler.total_steps


def interval_of(spec: Any) -> str:
    """When the scheduler that a spec of the config names is meant to be stepped: after a "step" or an "epoch".

    Its own word first; else OneCycleLR and CyclicLR, also as parts of others, want steps.
    """
    if not isinstance(spec, dict):
        return "step" if spec in ("OneCycleLR", "CyclicLR") else "epoch"
    if spec.get("interval"):
        return spec["interval"]
    parts = [spec["type"], *spec.get("args", {}).get("schedulers", [])]
    return "step" if any(interval_of(part) == "step" for part in parts) else "epoch"


def check_optimizer(optimizer: Any) -> None:
    """Raises UserError for an optimizer that wants to compute the loss itself (LBFGS)."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UserError(
            f"optimizer.type: {type(optimizer).__name__} computes the loss several times in a step; "
            "that takes a trainer of its own (write _train_epoch)"
        )
