"""The optimizer: which parameters learn, and how fast."""

import functools
import inspect
import re

from torch import nn
from torch.optim import Optimizer

from base import BaseTask
from base.schedule import Schedule
from model.freezing import match_names
from utils.config.config import ConfigParser
from utils.config.hints import ParameterRule
from utils.engine import distributed
from utils.engine.engine import Engine, unwrap
from utils.errors import UserError


def build_optimizers(config: ConfigParser, engine: Engine, task: BaseTask) -> dict[str, Optimizer]:
    """Further optimizers, by section: each trains the network of the task that its section names.

    Raises UserError if the task does not hold that network.
    """
    optimizers = {}
    for section in config.own_sections("optimizer"):
        name = config.option(section, "network")
        if not name:
            raise UserError(
                f'{section}: whose parameters? Name a section with "role": "arch" as "network"'
            )
        network = unwrap(vars(task).get(name))
        if not isinstance(network, nn.Module):
            kind = type(task).__name__
            raise UserError(f"{section}.network: {kind} stores no network as self.{name}")
        optimizers[section] = build_optimizer(config, engine, network, section)
    return optimizers


def build_optimizer(
    config: ConfigParser,
    engine: Engine,
    network: nn.Module,
    section: str = "optimizer",
    task: BaseTask | None = None,
) -> Optimizer:
    """The optimizer that a section names, of the network's parameters, in the groups it asks for.

    Frozen parameters are among them: without gradients they stay as they are, and can be unfrozen
    later. So are those of the `task`, in a group of their own. Raises UserError for an optimizer
    that wants to compute the loss itself (LBFGS).
    """
    if next(network.parameters(), None) is None:
        raise UserError(f"arch: {type(network).__name__} has no parameters to train")
    bound = config.init_ftn(section)
    keys = ("param_groups", "no_decay", "layer_decay")
    rules, no_decay, layer_decay = (config.option(section, key) for key in keys)
    lr = bound.keywords.get("lr")
    groups = parameter_groups(network, lr, rules, bool(no_decay), layer_decay)
    if own := task.parameters() if task is not None else []:
        if distributed.world_size() > 1:
            name = type(task).__name__
            raise UserError(f"task: {name} and its loss have parameters; train in one process")
        groups.append({"params": own})
    fast = engine.optimizer_options(bound.func, bound.keywords)
    optimizer = config.init_obj(section, params=groups, **fast)
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UserError(
            f"{section}.type: {type(optimizer).__name__} computes the loss several times a step; "
            "that takes a trainer of its own (write _train_epoch)"
        )
    return optimizer


def build_schedule(config: ConfigParser, section: str = "lr_scheduler") -> Schedule:
    """The schedule that a section describes, not started yet."""
    return Schedule(config.get(section), functools.partial(config.init_obj, section))


def build_schedules(config: ConfigParser) -> dict[str, Schedule]:
    """The further schedules, by section."""
    sections = config.own_sections("lr_scheduler")
    return {section: build_schedule(config, section) for section in sections}


def parameter_groups(
    network: nn.Module,
    lr: float | None,
    rules: list[ParameterRule] | None = None,
    no_decay: bool = False,
    layer_decay: float | None = None,
) -> list[dict]:
    """An optimizer's parameter groups, which differ in learning rate or weight decay.

    Args:
        network: whose parameters
        lr: the learning rate of parameters that no rule names
        rules: {"match": regular expression, "lr": ..., ...}; the first that matches a name counts
        no_decay: no weight decay for norms and biases
        layer_decay: factor by which each layer further from the head learns slower (Clark et al.,
            arXiv:2003.10555)

    Raises UserError if a rule matches nothing.
    """
    names = [name for name, _ in network.named_parameters()]
    for rule in rules or []:
        match_names(rule["match"], names, "optimizer.param_groups")
    stages = list(dict.fromkeys(map(_stage, names)))
    groups: dict[tuple, dict] = {}
    for name, parameter in network.named_parameters():
        rule = next((rule for rule in rules or [] if re.search(rule["match"], name)), {})
        options = {key: value for key, value in rule.items() if key != "match"}
        rate = options.get("lr", lr)
        if layer_decay is not None and rate is not None:
            depth = len(stages) - 1 - stages.index(_stage(name))
            options["lr"] = rate * layer_decay**depth
        if no_decay and parameter.ndim <= 1:
            options["weight_decay"] = 0.0
        group = groups.setdefault(tuple(sorted(options.items())), {**options, "params": []})
        group["params"].append(parameter)
    return list(groups.values())


def _stage(name: str) -> str:
    """The part of a parameter's name that tells its depth: "layer1", "features.3", "fc"."""
    numbered = re.match(r"(?:[^.\d]+\.)*[^.]*\d[^.]*", name)
    return numbered[0] if numbered else name.partition(".")[0]
