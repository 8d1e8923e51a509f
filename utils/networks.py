"""What can be done to any network: find its head, freeze it, group its parameters, fit it to grey pictures."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.hints import ParameterRule


def head_of(network: nn.Module) -> str:
    """Name of the last layer with weights, linear or convolutional, which gives the classes. Raises UserError."""
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not layers:
        raise UserError(f"arch: {type(network).__name__} has no linear or convolutional layer to take for its head")
    return layers[-1]


def main_output(output: Any) -> Tensor:
    """The network's answer, without what the auxiliary heads of GoogLeNet and Inception give in training."""
    return output if isinstance(output, Tensor) else output[0]


def auxiliary_outputs(output: Any) -> list[Tensor]:
    """What the auxiliary heads gave, if there are any."""
    return [] if isinstance(output, Tensor) else [extra for extra in output[1:] if extra is not None]


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """While it lasts, torch's attention is computed in steps that can be counted and exported, not in one of its own."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextlib.contextmanager
def all_thawed(network: nn.Module) -> Iterator[None]:
    """While it lasts, all parameters want gradients: without them autograd does not see a layer."""
    frozen = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def run_with_auxiliary_heads(network: nn.Module, example: Tensor) -> Any:
    """The outputs in evaluation mode, those of auxiliary heads too: the outermost module alone is told that it trains."""
    was_training, network.training = network.training, True
    try:
        return network(example)
    finally:
        network.training = was_training


def output_layers(network: nn.Module, example: Tensor) -> list[str]:
    """Names of the layers with weights that the outputs come from, auxiliary heads among them. Changes nothing."""
    made: dict[Any, str] = {}
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: made.__setitem__(output.grad_fn, name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    ]
    try:
        with all_thawed(network):
            output = run_with_auxiliary_heads(network, example)
    finally:
        for handle in handles:
            handle.remove()
    names, seen = [], set()
    steps = [tensor.grad_fn for tensor in (main_output(output), *auxiliary_outputs(output))]
    while steps:
        step = steps.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        if step in made:
            names.append(made[step])
        else:
            steps += [before for before, _ in step.next_functions]
    return names


def take_channels(network: nn.Module, channels: int) -> None:
    """Let one of torchvision's networks, made for 3 channels, take 1: the first convolution's weights are summed."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or not type(network).__module__.startswith("torchvision.") or first.in_channels == channels:
        return
    if (first.in_channels, channels) != (3, 1):
        raise UserError(f"arch: {type(network).__name__} takes pictures of {first.in_channels} channels, not of {channels}")
    weight = first.weight.detach().sum(dim=1, keepdim=True)
    first.in_channels, first.weight = channels, nn.Parameter(weight)


class Freezing:
    """Which parameters stay as they are, and until when.

    Args:
        rule: "backbone" for all but the head, or regular expressions of parameter names; None freezes nothing
        until: the epoch from which all train; None for never
    """

    def __init__(self, rule: str | list[str] | None = None, until: int | None = None):
        self.rule, self.until = rule, until

    def apply(self, network: nn.Module, epoch: int) -> bool:
        """Say which parameters train in `epoch`; whether that is new.

        Raises UserError where a pattern matches none, or all are frozen.
        """
        if self.rule is None:
            return False
        before = [parameter.requires_grad for parameter in network.parameters()]
        frozen = set() if self.until is not None and epoch >= self.until else self.names(network)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name not in frozen)
        return before != [parameter.requires_grad for parameter in network.parameters()]

    def names(self, network: nn.Module) -> set[str]:
        """The parameters that the rule freezes."""
        names = [name for name, _ in network.named_parameters()]
        if self.rule == "backbone":
            head = head_of(network)
            frozen = {name for name in names if not name.startswith(f"{head}.")}
        else:
            frozen = set()
            for pattern in [self.rule] if isinstance(self.rule, str) else self.rule or []:
                matched = {name for name in names if _search(pattern, name, "arch.freeze")}
                if not matched:
                    raise UserError(f'arch.freeze: no parameter matches "{pattern}"; there are {_examples(names)}')
                frozen |= matched
        if len(frozen) == len(names):
            raise UserError("arch.freeze: nothing is left to train")
        return frozen


def set_training_mode(network: nn.Module) -> None:
    """Training mode for what trains. What is frozen stays as in evaluation: its batch norms would go on counting."""
    network.train()
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def parameter_groups(
    network: nn.Module,
    lr: float | None,
    rules: list[ParameterRule] | None = None,
    no_decay: bool = False,
    layer_decay: float | None = None,
) -> list[dict]:
    """The parameters as an optimizer wants them, in groups that differ in learning rate or weight decay.

    Args:
        network: whose parameters
        lr: the learning rate of what no rule names
        rules: {"match": regular expression, "lr": ..., ...}; the first that matches a parameter's name counts
        no_decay: no weight decay for norms and biases
        layer_decay: each layer further from the head learns that much slower (Clark et al., arXiv:2003.10555)

    Raises UserError where a rule matches nothing.
    """
    names = [name for name, _ in network.named_parameters()]
    for rule in rules or []:
        if not any(_search(rule["match"], name, "optimizer.param_groups") for name in names):
            raise UserError(f'optimizer.param_groups: no parameter matches "{rule["match"]}"; there are {_examples(names)}')
    stages = list(dict.fromkeys(map(_stage, names)))
    groups: dict[tuple, dict] = {}
    for name, parameter in network.named_parameters():
        rule = next((rule for rule in rules or [] if re.search(rule["match"], name)), {})
        options = {key: value for key, value in rule.items() if key != "match"}
        if layer_decay is not None and (rate := options.get("lr", lr)) is not None:
            options["lr"] = rate * layer_decay ** (len(stages) - 1 - stages.index(_stage(name)))
        if no_decay and parameter.ndim <= 1:
            options["weight_decay"] = 0.0
        groups.setdefault(tuple(sorted(options.items())), {**options, "params": []})["params"].append(parameter)
    return list(groups.values())


def _stage(name: str) -> str:
    """The part of a parameter's name that says how deep it lies: "layer1", "features.3", "fc"."""
    numbered = re.match(r"(?:[^.\d]+\.)*[^.]*\d[^.]*", name)
    return numbered[0] if numbered else name.partition(".")[0]


def _search(pattern: str, name: str, key: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise UserError(f'{key}: "{pattern}" is no regular expression: {error}') from None


def _examples(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" ... {names[-1]}" if len(names) > 3 else "")
