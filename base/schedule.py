import warnings
from collections.abc import Callable
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LRScheduler,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
)

from base.monitor import Monitor
from utils.errors import UserError

# of a scheduler: what says its length, and what the learning rate does after it
ENDS = {OneCycleLR: ("total_steps", "stays where it is"), PolynomialLR: ("total_iters", "is 0"),
        CosineAnnealingLR: ("T_max", "rises again")}  # fmt: skip


class Schedule:
    """Steps the learning rate's scheduler, if there is one, after each optimizer step or epoch.

    Args:
        spec: the config's section, whose "interval" says when to step, and whose "optimizer" names
            another one's section; None for none
        build: builds the scheduler of an optimizer: a function of optimizer and, if wanted,
            total_steps and max_lr
    """

    def __init__(self, spec: str | dict | None, build: Callable[..., LRScheduler | None]):
        self.spec, self.build, self.interval = spec, build, step_interval(spec)
        keys = spec if isinstance(spec, dict) else {}
        self.optimizer = keys.get("optimizer") or "optimizer"  # the name of its section
        self.scheduler: LRScheduler | None = None
        self.watched: str | None = None
        self.steps = 0  # that the run takes, in `interval`s

    def start(
        self, optimizer: Optimizer, epochs: int, steps_per_epoch: int, monitor: Monitor
    ) -> None:
        """Begin a schedule of `epochs` epochs for a new optimizer.

        ReduceLROnPlateau watches what `monitor` watches if their modes agree, else val_loss. Raises
        UserError if it would wait for the wrong direction.
        """
        arguments = self.spec.get("args", {}) if isinstance(self.spec, dict) else {}
        steps = epochs * (steps_per_epoch if self.interval == "step" else 1)
        length = {} if "steps_per_epoch" in arguments else {"total_steps": steps}
        # unless the config says so, a rate rises to the optimizer's: --lr changes both
        rates = [group["lr"] for group in optimizer.param_groups]
        scheduler = self.build(optimizer=optimizer, max_lr=rates, **length)
        self.scheduler, self.watched, self.steps = scheduler, None, steps
        if isinstance(scheduler, ReduceLROnPlateau):
            if self.interval == "step":
                raise UserError(
                    "lr_scheduler.interval: ReduceLROnPlateau needs the numbers of a whole epoch"
                )
            if scheduler.mode not in (monitor.mode, "min"):
                raise UserError(
                    'lr_scheduler.args.mode: "max" needs "max NAME" in trainer.monitor to watch'
                )
            self.watched = monitor.name if monitor.mode == scheduler.mode else "val_loss"

    def after_step(self) -> None:
        self._step("step")

    def after_epoch(self, log: dict[str, float]) -> None:
        watched = () if self.watched is None else (log.get(self.watched, log["loss"]),)
        self._step("epoch", *watched)

    def find_end(self) -> str | None:
        """A sentence about a schedule that is over before the run is, or None.

        A run that was made longer on resume reaches that point, or a config that counts epochs
        where steps are meant.
        """
        for cls, (key, then) in ENDS.items():
            end = getattr(self.scheduler, key, self.steps)
            if isinstance(self.scheduler, cls) and end < self.steps:
                return (
                    f"lr_scheduler: {cls.__name__} ends after {end:,} of {self.steps:,} "
                    f"{self.interval}s; from there on the learning rate {then}. For a longer "
                    "schedule start a new run from the weights: -r PATH -c FILE"
                )
        return None

    def state_dict(self) -> dict | None:
        return None if self.scheduler is None else self.scheduler.state_dict()

    def load_state_dict(self, state: dict | None) -> None:
        if self.scheduler is not None and state is not None:
            self.scheduler.load_state_dict(state)

    def _step(self, interval: str, *watched: float) -> None:
        scheduler = self.scheduler
        if scheduler is None or self.interval != interval:
            return
        if isinstance(scheduler, OneCycleLR) and scheduler.last_epoch + 1 >= scheduler.total_steps:
            # It refuses to be stepped past its end, which a run that was made longer on resume
            # reaches: the rate stays at its last value.
            return
        with warnings.catch_warnings():
            # torch does not know of the optimizer steps taken before a resume
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            scheduler.step(*watched)


def step_interval(spec: str | dict | None) -> Literal["step", "epoch"]:
    """When a scheduler is stepped: what its "interval" says, else by its type.

    OneCycleLR and CyclicLR, also as parts of others, step after each optimizer step.
    """
    if not isinstance(spec, dict):
        return "step" if spec in ("OneCycleLR", "CyclicLR") else "epoch"
    if spec.get("interval"):
        return spec["interval"]
    parts = [spec["type"], *spec.get("args", {}).get("schedulers", [])]
    return "step" if any(step_interval(part) == "step" for part in parts) else "epoch"
