"""Which channels of a network belong together, by torch-pruning's dependency graph (Fang et al., arXiv:2301.12900)."""

import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from pruner.families import FAMILIES
from utils.errors import UserError
from utils.networks import all_thawed, output_layers, run_with_auxiliary_heads
from utils.structure import structure_of
from utils.summary import multiply_adds

ADVICE = "name the layers that it cannot follow in pruner.args.ignored_layers"
Removals = dict[str, np.ndarray]  # the units that go, of each group by its name


@dataclass
class ChannelGroup:
    """Channels that can only go together, through all layers that pass them on.

    A unit is what can be removed at once: one channel, or one of each group (convolution) or head (attention).

    Attributes:
        name: of the first layer that makes these channels
        root: torch-pruning's group, of all of the channels
        parts: how many channels a unit has
        built: how many channels the constructor made
        touched: (module's name, "out" | "in", how many of its channels each unit takes) for each layer concerned
        kind: equal for groups that look alike (isomorphic)
    """

    name: str
    root: Any
    parts: int
    units: int
    built: int
    kind: str
    touched: list[tuple[str, str, np.ndarray]] = field(repr=False)

    @property
    def width(self) -> int:
        return self.units * self.parts


class ChannelGraph:
    """The groups of channels of a network, and how to cut them out of it.

    Args:
        network: in evaluation mode
        example: a batch of two of what it takes
        kept: names of modules of which no output is to be removed; all that gives the network's output is kept anyway
        library: torch-pruning's class that builds the graph, and may have a regularizer
        importance: the criterion that the regularizer goes by
        options: what that class takes besides

    Raises UserError where torch-pruning cannot follow the network.
    """

    def __init__(
        self, network: nn.Module, example: Tensor, kept: Iterable[str], library: Any, importance: Any = None, **options: Any
    ):
        self.network = network
        self.names = {module: name for name, module in network.named_modules()}
        modules = {name: module for module, name in self.names.items()}
        heads = output_layers(network, example)
        ignored = [modules[name] for name in dict.fromkeys([*heads, *kept])]
        divided: dict[nn.Module, int] = {}
        with ExitStack() as stack, warnings.catch_warnings(), all_thawed(network):
            warnings.simplefilter("ignore")
            for family in FAMILIES:
                for module in network.modules():
                    if isinstance(module, family.types()):
                        ignored += family.kept(module)
                        divided |= family.divided(module)
                stack.enter_context(family.traced(network))
            try:
                self.library = library(
                    network,
                    (example,),
                    importance=importance,
                    ignored_layers=ignored,
                    in_channel_groups={},
                    out_channel_groups=divided,
                    num_heads={},
                    forward_fn=lambda module, inputs: run_with_auxiliary_heads(module, *inputs),
                    **options,
                )
                found = list(
                    self.library.DG.get_all_groups(self.library.ignored_layers, (nn.modules.conv._ConvNd, nn.Linear))
                )
            except UserError:
                raise
            except Exception as error:
                raise UserError(
                    f"pruner: torch-pruning cannot follow {type(network).__name__} "
                    f"({type(error).__name__}: {error}); name what it should leave alone in pruner.args.ignored_layers"
                ) from error
        self.groups = [self._group(group) for group in found]

    def _group(self, root: Any) -> ChannelGroup:
        graph = self.library.DG
        layer, width = root[0].dep.target.module, len(root[0].idxs)
        parts = 1
        touched, kind = [], []
        for dep, _ in root:
            module, out = dep.target.module, graph.is_out_channel_pruning_fn(dep.handler)
            parts = max(parts, (self.library.out_channel_groups if out else self.library.in_channel_groups).get(module, 1))
            kind.append(f"{type(module).__name__} {'out' if out else 'in'}")
        units = width // parts
        for position, (dep, indices) in enumerate(root):
            module, out = dep.target.module, graph.is_out_channel_pruning_fn(dep.handler)
            name = graph._param_to_name[module] if isinstance(module, nn.Parameter) else self.names.get(module)
            if name is None:  # an operation between layers
                continue
            roots = [index for index in root[position].root_idxs if index is not None]
            if len(roots) == len(indices):
                counts = np.bincount(np.asarray(roots, dtype=int) % units, minlength=units)
            else:
                counts = np.full(units, len(indices) / units)
            touched.append((name, "out" if out else "in", counts))
        name = self.names[layer]
        shapes = (structure_of(self.network) or {"shapes": {}})["shapes"]
        axis = 1 if getattr(layer, "transposed", False) else 0
        built = shapes[f"{name}.weight"][0][axis] if f"{name}.weight" in shapes else width
        return ChannelGroup(name, root, parts, units, built, ", ".join(kind), touched)

    def cut(self, removals: Removals) -> None:
        """Cut these units of each group out, wherever they pass."""
        for group in self.groups:
            if group.name in removals:
                units = removals[group.name].tolist()
                channels = sorted(part * group.units + unit for unit in units for part in range(group.parts))
                dep = group.root[0].dep
                self.library.DG.get_pruning_group(dep.target.module, dep.handler, channels).prune()
        for family in FAMILIES:
            for module in self.network.modules():
                if isinstance(module, family.types()):
                    family.mend(module)


def check_cut(network: nn.Module, example: Tensor, before: Tensor) -> None:
    """Raises UserError where the network that was cut does not run, or gives another number of outputs than `before`."""
    try:
        output = multiply_adds(network, example)[1]
    except UserError as error:
        raise UserError(f"pruner: {type(network).__name__} does not run once it is cut ({error}); {ADVICE}") from error
    if output.shape != before.shape:
        raise UserError(f"pruner: the cut made the output {list(output.shape)} of {list(before.shape)}; {ADVICE}")
