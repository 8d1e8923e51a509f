"""The optimizer: which parameters learn, and how fast."""

import inspect
import re

from torch import nn
from torch.optim import Optimizer

from model.freezing import match_names
from utils.config.config import ConfigParser
from utils.config.hints import ParameterRule
from utils.engine.engine import Engine
from utils.errors import UserError


def build_optimizer(config: ConfigParser, engine: Engine, network: nn.Module) -> Optimizer:
    """The optimizer that the config names, of the network's parameters, in the groups it asks for.

    Frozen parameters are among them: without gradients they stay as they are, and can be thawed
    later. Raises UserError for an optimizer that wants to compute the loss itself (LBFGS).
    """
    if not any(True for _ in network.parameters()):
        raise UserError(f"arch: {type(network).__name__} has no parameters to train")
    bound = config.init_ftn("optimizer")
    keys = ("param_groups", "no_decay", "layer_decay")
    rules, no_decay, layer_decay = (config.option("optimizer", key) for key in keys)
    lr = bound.keywords.get("lr")
    groups = parameter_groups(network, lr, rules, bool(no_decay), layer_decay)
    fast = engine.optimizer_options(bound.func, bound.keywords)
    optimizer = config.init_obj("optimizer", params=groups, **fast)
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        name = type(optimizer).__name__
        reason = "computes the loss several times a step; that takes a trainer of its own"
        raise UserError(f"optimizer.type: {name} {reason} (write _train_epoch)")
    return optimizer


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
