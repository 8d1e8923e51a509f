"""What changes the weights: the optimizer that the config names, the schedule of its learning rate, their average."""

import functools
import inspect
import warnings
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from utils.engine import Engine
from utils.errors import UserError
from utils.monitor import Monitor
from utils.networks import parameter_groups


class Schedule:
    """Steps the scheduler that a config names, if any, when it should be: after each optimizer step, or after each epoch.

    Args:
        config: which need not say how long the schedule is
        optimizer: whose learning rate it is
        epochs: how long the schedule is
        steps_per_epoch: of the optimizer
        monitor: the trainer's; ReduceLROnPlateau watches the same where the modes agree, else val_loss

    Raises UserError where ReduceLROnPlateau would wait for the wrong direction.
    """

    def __init__(self, config: Any, optimizer: Optimizer, epochs: int, steps_per_epoch: int, monitor: Monitor):
        self.interval, self.watched = interval_of(config.get("lr_scheduler")), None
        length = {"total_steps": epochs * (steps_per_epoch if self.interval == "step" else 1)}
        length = {} if "steps_per_epoch" in config.option("lr_scheduler", "args", {}) else length
        self.scheduler = scheduler = config.init_obj("lr_scheduler", optimizer=optimizer, **length)
        if isinstance(scheduler, ReduceLROnPlateau):
            if self.interval == "step":
                raise UserError("lr_scheduler.interval: ReduceLROnPlateau needs a whole epoch's numbers")
            if monitor.mode == scheduler.mode:
                self.watched = monitor.name
            elif scheduler.mode == "min":
                self.watched = "val_loss"
            else:
                raise UserError('lr_scheduler.args.mode: "max" needs a "max ..." in trainer.monitor, to know what to watch')

    def after_step(self) -> None:
        self._step("step")

    def after_epoch(self, log: dict[str, float]) -> None:
        if self.watched is None:
            self._step("epoch")
        else:
            self._step("epoch", log[self.watched] if self.watched in log else log["loss"])

    def state_dict(self) -> dict | None:
        return None if self.scheduler is None else self.scheduler.state_dict()

    def load_state_dict(self, state: dict | None) -> None:
        if self.scheduler is not None and state is not None:
            self.scheduler.load_state_dict(state)

    def _step(self, interval: str, *watched: float) -> None:
        if self.scheduler is None or self.interval != interval or self._at_end():
            return
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


def optimizer_of(config: Any, network: nn.Module, engine: Engine) -> Optimizer:
    """The optimizer that the config names, of the network's parameters in the groups it asks for.

    Raises UserError for one that wants to compute the loss itself (LBFGS).
    """
    bound, option = config.init_ftn("optimizer"), functools.partial(config.option, "optimizer")
    rules, no_decay, layer_decay = option("param_groups"), option("no_decay", False), option("layer_decay")
    groups = parameter_groups(network, bound.keywords.get("lr"), rules, no_decay, layer_decay)
    optimizer = config.init_obj("optimizer", params=groups, **engine.optimizer_options(bound.func, bound.keywords))
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UserError(
            f"optimizer.type: {type(optimizer).__name__} computes the loss several times in a step; "
            "that takes a trainer of its own (write _train_epoch)"
        )
    return optimizer


def average_of(network: nn.Module, decay: float | None) -> AveragedModel | None:
    """The moving average of the weights, where there is to be one."""
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if decay else None
