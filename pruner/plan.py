"""Which channels go: block after block, until enough are gone. Nothing is cut here."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn

from pruner.graph import ChannelGroup, Removals

SQUARE = -1.0  # inputs of a layer whose inputs are its outputs


@dataclass
class Limits:
    """How far a group may be narrowed, and in what blocks.

    Attributes:
        round_to: widths are multiples of this; processors like multiples of 8
        min_channels: that many stay
        max_channel_sparsity: no larger share than this goes
    """

    round_to: int
    min_channels: int
    max_channel_sparsity: float


class Plan:
    """What goes of each group. Groups in one scope compete: the least important block of all of them goes next.

    Args:
        groups: those that may be narrowed
        importance: of each group's units, by its name
        originals: each group's width before the first cut, by its name
        scopes: each group's scope, by its name
        limits: for all groups
    """

    def __init__(
        self,
        groups: list[ChannelGroup],
        importance: dict[str, np.ndarray],
        originals: dict[str, int],
        scopes: dict[str, str],
        limits: Limits,
    ):
        self.groups = {group.name: group for group in groups}
        self.originals, self.limits = originals, limits
        self.order = {name: np.argsort(importance[name], kind="stable") for name in self.groups}
        self._sums = {name: np.cumsum([0.0, *importance[name][self.order[name]]]) for name in self.groups}
        self.removed = dict.fromkeys(self.groups, 0)
        self.scopes: dict[str, list[str]] = {}
        self.settled: set[str] = set()  # scopes that remove_until leaves alone
        self.most: dict[str, int] = {}  # units that a group may lose, where not all that the limits let it
        for name in self.groups:
            self.scopes.setdefault(scopes[name], []).append(name)

    def removals(self) -> Removals:
        """The numbers of the units that go, of each group that loses some."""
        return {name: self.order[name][:count] for name, count in self.removed.items() if count}

    def width(self, name: str) -> int:
        """What is left of a group."""
        group = self.groups[name]
        return (group.units - self.removed[name]) * group.parts

    def sparsity(self, scope: str) -> float:
        """The share of a scope's original channels that are gone by now."""
        names = self.scopes[scope]
        return 1 - sum(map(self.width, names)) / sum(self.originals[name] for name in names)

    def block(self, name: str) -> int:
        """How many units go next; 0 where the limits leave none."""
        group, limits = self.groups[name], self.limits
        left = group.units - self.removed[name]
        least = max(limits.min_channels, round(self.originals[name] * (1 - limits.max_channel_sparsity) - 1e-6), 1)
        for units in range(1, left):
            width = (left - units) * group.parts
            if width < least or self.removed[name] + units > self.most.get(name, group.units):
                break
            if width % limits.round_to == 0:
                return units
        return 0

    def next_in(self, scope: str) -> str | None:
        """The group of a scope whose next block is the least important; None where no group has one."""

        def worth(name: str) -> float:
            start, count = self.removed[name], self.block(name)
            return (self._sums[name][start + count] - self._sums[name][start]) / count

        candidates = [name for name in self.scopes[scope] if self.block(name)]
        return min(candidates, key=worth, default=None)

    def remove_share(self, shares: dict[str, float]) -> None:
        """Let blocks go until of each scope at least that share is gone."""
        for scope, share in shares.items():
            while self.sparsity(scope) < share - 1e-9 and (name := self.next_in(scope)) is not None:
                self.removed[name] += self.block(name)

    def remove_until(self, size: Callable[[Removals], float], goal: float, fill: bool = True) -> bool:
        """Let blocks go, of the scope that has lost the least so far, until size(removals) <= goal; whether it came so far.

        With `fill` blocks come back then, the largest first that the goal has room for: widths are coarse, and so would be
        the size. Without it a smaller goal takes the same blocks and more.
        """
        gone: dict[str, list[tuple[str, int]]] = {}  # of each scope the blocks, the latest last
        while size(self.removals()) > goal:
            choices = {scope: name for scope in self.scopes if scope not in self.settled and (name := self.next_in(scope))}
            if not choices:
                return False
            scope = min(choices, key=self.sparsity)
            name = choices[scope]
            gone.setdefault(scope, []).append((name, self.block(name)))
            self.removed[name] += self.block(name)
        while fill:
            latest = {scope: blocks[-1] for scope, blocks in gone.items() if blocks}
            sizes = {
                scope: size(self.removals() | {name: self.order[name][: self.removed[name] - units]})
                for scope, (name, units) in latest.items()
            }
            fits = [scope for scope in sizes if sizes[scope] <= goal]
            if not fits:
                break
            name, units = gone[max(fits, key=lambda scope: sizes[scope])].pop()
            self.removed[name] -= units
        return True


class SizeForecast:
    """What a network's size will be after a cut, from its layers and what the groups touch of them.

    Exact for convolutions, linear layers and norms; attention is taken to shrink with the square of its width.

    Args:
        network: before the cut
        groups: of its channels
        macs: multiply-adds of each layer, by its name, and of all by ""
    """

    def __init__(self, network: nn.Module, groups: list[ChannelGroup], macs: dict[str, float]):
        self.groups = {group.name: group for group in groups}
        modules = dict(network.named_modules())
        own = {name: [p.numel() for p in module.parameters(recurse=False)] for name, module in modules.items()}
        widths: dict[str, float] = {}
        for group in groups:
            for name, _, counts in group.touched:
                widths[name] = max(widths.get(name, 0.0), float(counts.sum()))
        self.layers = {}  # name -> (outputs, inputs, multiply-adds, weights, weights that have outputs only)
        for name, width in widths.items():
            layer = modules.get(name)
            if layer is None:  # a parameter that stands alone
                self.layers[name] = (width, width, 0.0, 0.0, float(network.get_parameter(name).numel()))
            elif isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
                weight = layer.weight.numel()
                outputs = float(getattr(layer, "out_channels", 0) or layer.out_features)
                inputs = float(getattr(layer, "in_channels", 0) or layer.in_features)
                depthwise = getattr(layer, "groups", 1) == inputs > 1
                bias = sum(own[name]) - weight
                large, small = (0.0, weight + bias) if depthwise else (float(weight), float(bias))
                self.layers[name] = (outputs, 0.0 if depthwise else inputs, macs.get(name, 0.0), large, small)
            elif isinstance(layer, nn.MultiheadAttention):
                whole = float(sum(p.numel() for p in layer.parameters()))
                self.layers[name] = (float(layer.embed_dim), SQUARE, macs.get(name, 0.0), whole, 0.0)
            elif own[name]:
                self.layers[name] = (width, 0.0, macs.get(name, 0.0), 0.0, float(sum(own[name])))
        self.macs, self.params = float(macs[""]), float(sum(p.numel() for p in network.parameters()))

    def __call__(self, removals: Removals) -> dict[str, float]:
        """{"macs", "params"} when these units of each group are gone."""
        outputs: dict[str, float] = {}
        inputs: dict[str, float] = {}
        for group, units in removals.items():
            for name, side, counts in self.groups[group].touched:
                lost = outputs if side == "out" else inputs
                lost[name] = lost.get(name, 0.0) + float(counts[units].sum())
        macs, params = self.macs, self.params
        for name in outputs.keys() | inputs.keys():
            if name not in self.layers:
                continue
            wide, deep, work, large, small = self.layers[name]
            out = 1 - max(outputs.get(name, 0.0), inputs.get(name, 0.0) if deep == SQUARE else 0.0) / wide
            both = out**2 if deep == SQUARE else out * (1 - inputs.get(name, 0.0) / deep) if deep else out
            macs -= work * (1 - both)
            params -= large * (1 - both) + small * (1 - out)
        return {"macs": macs, "params": params}
