"""Which channels of a network belong together, by torch-pruning's dependency graph.

Fang et al., arXiv:2301.12900.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.module import register_module_forward_hook

from model.heads import Output, auxiliary_outputs, main_output
from pruner.families import fix_attributes, kept_parts, traceable
from utils.errors import explained

if TYPE_CHECKING:
    from torch_pruning.dependency import Group
    from torch_pruning.pruner import BasePruner

ADVICE = "name the layers that it cannot handle in pruner.args.ignored_layers"
LAYERS = nn.Linear, nn.modules.conv._ConvNd

Removals = dict[str, np.ndarray]  # group name -> numbers of the units to remove


@dataclass
class ChannelGroup:
    """Channels that can only be removed together, through all layers that pass them on.

    A unit is the least that can be removed: one channel, or one of each of the layer's groups
    (convolution) or heads (attention).

    Attributes:
        name: of the first layer that outputs these channels
        root: torch-pruning's group, with all channels
        units: how many units there are
        parts: channels in a unit
        kind: the same for groups that are connected alike (isomorphic)
        touched: for each layer concerned its name, the side ("out" or "in"), and how many of its
            channels go with each unit
        original: channels before the first cut
        gone: how many units are already planned to be removed
        allowed: how many units may be removed, in ascending order
        importance: of each unit
        scope: groups in one scope compete for what stays
        share: of the channels to remove in all, if that does not depend on other groups
    """

    name: str
    root: "Group"
    units: int
    parts: int
    kind: str
    touched: list[tuple[str, str, np.ndarray]]
    original: int = 0
    gone: int = 0
    allowed: list[int] = field(default_factory=list)
    importance: np.ndarray | None = None
    scope: str = ""
    share: float | None = None

    @property
    def left(self) -> int:
        """Channels that are not planned to be removed."""
        return (self.units - self.gone) * self.parts


class ChannelGraph:
    """The groups of channels of a network, and how to remove channels from it.

    Args:
        network: in evaluation mode
        example: a batch of two inputs
        kept: names of modules that keep all outputs
        library: builds torch-pruning's pruner, which has the graph and may have a regularizer

    Raises UserError if torch-pruning cannot follow the network.
    """

    def __init__(
        self,
        network: nn.Module,
        example: Tensor,
        kept: Iterable[str],
        library: "Callable[..., BasePruner]",
    ):
        self.network, self.example = network, example
        modules = dict(network.named_modules())
        named = [*modules.items(), *network.named_parameters()]
        self.names = {part: name for name, part in named}
        ignored = [modules[name] for name in kept]
        attentions = [m for m in modules.values() if isinstance(m, nn.MultiheadAttention)]
        quiet = warnings.catch_warnings(action="ignore")
        with explain_failure(network), all_thawed(network), traceable(), quiet:
            self.library = library(
                network,
                (example,),
                ignored_layers=ignored + kept_parts(network),
                in_channel_groups={},  # the defaults of these three are shared by all pruners
                out_channel_groups={module: module.num_heads for module in attentions},
                num_heads={},
                forward_fn=lambda module, inputs: run_with_auxiliary_heads(module, *inputs),
            )
            roots = self.library.DG.get_all_groups(self.library.ignored_layers, LAYERS)
            self.groups = {group.name: group for group in map(self._group, roots)}

    def _group(self, root: "Group") -> ChannelGroup:
        parts = self.library._get_channel_groups(root)
        units = len(root[0].idxs) // parts
        kinds, touched = [], []
        for item in root:
            layer = item.dep.layer
            is_out = self.library.DG.is_out_channel_pruning_fn(item.dep.pruning_fn)
            side = "out" if is_out else "in"
            kinds.append(f"{type(layer).__name__} {side}")
            if layer not in self.names:  # an operation between layers
                continue
            channels = [index for index in item.root_idxs if index is not None]
            if len(channels) == len(item.idxs):
                counts = np.bincount(np.asarray(channels, dtype=int) % units, minlength=units)
            else:
                counts = np.full(units, len(item.idxs) / units)
            # inputs of an attention go with its outputs
            sides = ("out", "in") if isinstance(layer, nn.MultiheadAttention) else (side,)
            touched += [(self.names[layer], side, counts) for side in sides]
        name = self.names[root[0].dep.layer]
        return ChannelGroup(name, root, units, parts, ", ".join(kinds), touched)

    @property
    def rated(self) -> list[ChannelGroup]:
        """The groups whose units have an importance: only they may be narrowed."""
        return [group for group in self.groups.values() if group.importance is not None]

    def assume(self, removals: Removals) -> None:
        """Make further plans as if these units of each group were gone."""
        for group in self.groups.values():
            group.gone = len(removals.get(group.name, ()))

    def prune(self, removals: Removals) -> None:
        """Remove these units of each group, from all layers that they pass through."""
        for name, units in removals.items():
            group = self.groups[name]
            parts = np.arange(group.parts)[:, None] * group.units
            channels, dep = np.sort((parts + units).ravel()).tolist(), group.root[0].dep
            self.library.DG.get_pruning_group(dep.layer, dep.pruning_fn, channels).prune()
        fix_attributes(self.network)


class SizeForecast:
    """What a network's size will be after a cut, computed without cutting.

    Exact for convolutions, linear layers and norms; attention shrinks with the square of its width.

    Args:
        graph: the network's, before the cut
        macs: multiply-adds of each layer by its name, and of all by ""
    """

    def __init__(self, graph: ChannelGraph, macs: dict[str, int]):
        self.params = sum(parameter.numel() for parameter in graph.network.parameters())
        self.channels = sum(widths(graph.network).values())
        self.graph, self.macs, library = graph, macs, graph.library.DG
        # name -> outputs, inputs, parameters that shrink with both, those that shrink with outputs,
        # whether its outputs count as channels
        self.layers: dict[str, tuple[float, float, int, int, bool]] = {}
        touched = {name for group in graph.groups.values() for name, _, _ in group.touched}
        for layer, name in graph.names.items():
            if name in touched:
                outputs = library.get_out_channels(layer) or math.inf  # None if it has but one
                inputs = library.get_in_channels(layer) or math.inf
                if getattr(layer, "groups", 1) == inputs:  # depthwise: does not sum over inputs
                    inputs = math.inf
                tensors = [layer] if isinstance(layer, nn.Parameter) else layer.parameters()
                total = both = sum(tensor.numel() for tensor in tensors)
                if not isinstance(layer, nn.MultiheadAttention):
                    both = layer.weight.numel() if isinstance(layer, LAYERS) else 0
                has_channels = isinstance(layer, (*LAYERS, nn.MultiheadAttention))
                self.layers[name] = outputs, inputs, both, total - both, has_channels

    def __call__(self, removals: Removals) -> dict[str, float]:
        """The "channels", "macs" and "params" left once these units of each group are gone."""
        lost: Counter[tuple[str, str]] = Counter()  # channels
        for group, units in removals.items():
            for name, side, counts in self.graph.groups[group].touched:
                lost[name, side] += float(counts[units].sum())
        channels, macs, params = float(self.channels), float(self.macs[""]), float(self.params)
        for name in {name for name, _ in lost}:
            outputs, inputs, both, single, has_channels = self.layers[name]
            channels -= has_channels * lost[name, "out"]
            left = 1 - lost[name, "out"] / outputs
            left_of_both = left * (1 - lost[name, "in"] / inputs)
            macs -= self.macs.get(name, 0) * (1 - left_of_both)
            params -= both * (1 - left_of_both) + single * (1 - left)
        return {"channels": channels, "macs": macs, "params": params}


def widths(network: nn.Module) -> dict[str, int]:
    """The output channels of each convolution and linear layer."""
    layers = ((name, layer) for name, layer in network.named_modules() if isinstance(layer, LAYERS))
    return {name: getattr(layer, "out_channels", 0) or layer.out_features for name, layer in layers}


@contextmanager
def explain_failure(network: nn.Module) -> Iterator[None]:
    """Turn what torch-pruning raises on a network that it does not support into a UserError."""
    with explained(f"pruner: torch-pruning failed on {type(network).__name__}", f"; {ADVICE}"):
        yield


def run_with_auxiliary_heads(network: nn.Module, example: Tensor) -> Output:
    """Run the network in evaluation mode, auxiliary heads included.

    Only the outermost module is told that it trains: that is what makes it run the auxiliary heads.
    """
    was_training, network.training = network.training, True
    try:
        return network(example)
    finally:
        network.training = was_training


@contextmanager
def all_thawed(network: nn.Module) -> Iterator[None]:
    """Inside the `with` block all parameters require gradients: autograd skips frozen layers."""
    frozen = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    try:
        network.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def output_layers(network: nn.Module, example: Tensor) -> list[str]:
    """The names of the layers that produce the outputs, those of auxiliary heads included."""
    layers = {module: name for name, module in network.named_modules()}
    produced_by: dict[Node, str] = {}

    def record(module: nn.Module, _: tuple, output: Tensor) -> None:
        if isinstance(module, LAYERS):
            produced_by[output.grad_fn] = layers[module]

    with all_thawed(network), register_module_forward_hook(record):
        output = run_with_auxiliary_heads(network, example)

    def last_layers(node: Node | None) -> Iterator[str]:
        if node in produced_by:
            yield produced_by[node]
        elif node is not None:
            for previous, _ in node.next_functions:
                yield from last_layers(previous)

    outputs = main_output(output), *auxiliary_outputs(output)
    return list(dict.fromkeys(name for part in outputs for name in last_layers(part.grad_fn)))
