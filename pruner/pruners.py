"""The pruner that goes by a criterion alone; those that train for sparsity first are in sparse.py."""

import copy
import re
from typing import Any

from torch import Tensor, nn

from base import BasePruner
from pruner.criteria import build_importance, needs_gradients
from pruner.graph import ADVICE, ChannelGraph, Removals, check_cut
from pruner.latency import LatencySearch
from pruner.plan import Limits, Plan, SizeForecast
from utils.errors import UserError
from utils.hints import OpenShare, PositiveInt, Share, Target
from utils.latency import onnx_bytes, ratio, side_by_side
from utils.lookup import did_you_mean
from utils.networks import output_layers
from utils.structure import describe, note_cut
from utils.summary import multiply_adds

AIMS = ("channel_sparsity", "macs", "params", "latency", "latency_ms", "max_accuracy_drop")


class MagnitudePruner(BasePruner):
    """Cuts the least important channels of each layer, together with all that hangs on them.

    Args:
        iterative_steps: cuts to get there in, with training between them
        channel_sparsity: the share of each layer's channels that is cut in the end; the same as target.channel_sparsity
        target: what to aim at instead: {"macs": 0.3}, {"params": 0.3}, {"latency": 0.5}, {"max_accuracy_drop": 0.01}
        importance: what a channel is worth, the name of one of torch-pruning's criteria, or with its arguments
        global_pruning: rank the channels of all layers in one list, instead of each layer's in its own
        isomorphic: rank those of layers that are connected alike in one list (Fang et al., arXiv:2407.04616)
        round_to: widths are made multiples of this; processors are fast with multiples of 8
        max_channel_sparsity: no layer loses a larger share of its channels
        min_channels: so many channels every layer keeps
        ignored_layers: names of layers, or regular expressions of names, that keep all their outputs
        ratios: the share that single layers lose, by name or regular expression
    """

    library = "BasePruner"  # torch-pruning's class, whose regularizer is used

    def __init__(
        self,
        iterative_steps: PositiveInt = 1,
        channel_sparsity: OpenShare | None = None,
        target: Target | None = None,
        importance: str | dict = "MagnitudeImportance",
        global_pruning: bool = False,
        isomorphic: bool = False,
        round_to: PositiveInt = 8,
        max_channel_sparsity: OpenShare = 0.95,
        min_channels: PositiveInt = 1,
        ignored_layers: list[str] | None = None,
        ratios: dict[str, Share] | None = None,
    ):
        aims = {key: value for key, value in (target or {}).items() if key in AIMS}
        aims |= {} if channel_sparsity is None else {"channel_sparsity": channel_sparsity}
        if len(aims) != 1 or (channel_sparsity is not None and target is not None):
            both = f"not {' and '.join(sorted(aims))} together" if len(aims) > 1 else "there is none"
            raise UserError(f"pruner.args: one aim is needed, channel_sparsity or one of target ({', '.join(AIMS)}); {both}")
        if global_pruning and isomorphic:
            raise UserError("pruner.args: global_pruning ranks all layers in one list, isomorphic in several: choose one")
        self.aim = aims
        [(self.measure, self.value)] = aims.items()
        self.threads, self.batch_size = (target or {}).get("threads", 1), (target or {}).get("batch_size", 1)
        self.max_accuracy_drop = self.value if self.measure == "max_accuracy_drop" else None
        self.iterative_steps, self.global_pruning, self.isomorphic = iterative_steps, global_pruning, isomorphic
        self.limits = Limits(round_to, min_channels, max_channel_sparsity)
        self.ignored_layers, self.ratios = ignored_layers or [], ratios or {}
        self.importance = build_importance(importance)
        self.needs_gradients = needs_gradients(self.importance)
        self._widths: dict[str, int] = {}  # each group's, before the first cut
        self._sparse: Any = None

    def cut(self, network: nn.Module, example: Tensor, step: int, original: dict[str, Any]) -> bool:
        was_training, shape, part = network.training, describe(network), min(step / self.iterative_steps, 1.0)
        macs, output = multiply_adds(network.eval(), example)
        graph = self._graph(network, example)
        try:
            removals = self._choose(graph, SizeForecast(network, graph.groups, macs), example, part, original)
            if not removals:
                raise UserError(f"pruner: step {step} would remove nothing. {self._left(graph)}")
            graph.cut(removals)
        except (ValueError, IndexError, RuntimeError, AttributeError, TypeError, KeyError) as error:
            raise UserError(f"pruner: torch-pruning lost its way in {type(network).__name__} ({error}); {ADVICE}") from error
        note_cut(network, shape)
        check_cut(network, example, output)
        network.train(was_training)
        self._sparse = None
        return part == 1.0

    def options(self) -> dict[str, Any]:
        """What torch-pruning's class takes beside what all of them do."""
        return {}

    def state_dict(self) -> dict:
        return {"widths": self._widths}

    def load_state_dict(self, state: dict) -> None:
        self._widths = dict(state["widths"])

    def _graph(self, network: nn.Module, example: Tensor) -> ChannelGraph:
        import torch_pruning

        names = [name for name, _ in network.named_modules() if name]
        for pattern in self.ratios:
            for name in sorted(_matching(pattern, names, "ratios") & set(output_layers(network, example))):
                raise UserError(f"pruner.args.ratios: {name} gives the network's output, it keeps all its channels")
        kept = {name for pattern in self.ignored_layers for name in _matching(pattern, names, "ignored_layers")}
        library = getattr(torch_pruning.pruner, self.library)
        graph = ChannelGraph(network, example, sorted(kept), library, self.importance, **self.options())
        for group in graph.groups:
            self._widths.setdefault(group.name, group.width)
        return graph

    def _choose(
        self, graph: ChannelGraph, forecast: SizeForecast, example: Tensor, part: float, original: dict[str, Any]
    ) -> Removals:
        """What goes once `part` of the way is to be done."""
        if self.measure in ("channel_sparsity", "max_accuracy_drop"):
            share = self.value if self.measure == "channel_sparsity" else self.limits.max_channel_sparsity
            return self._plan(graph, part, share * part).removals()
        if self.measure in ("macs", "params"):
            whole = original[self.measure]
            self._smaller(graph, forecast, part, self.value * whole)  # can it be reached at all?
            return self._smaller(graph, forecast, part, _on_the_way(self.value, part) * whole)
        return self._faster(graph, forecast, example, part, original)

    def _smaller(self, graph: ChannelGraph, forecast: SizeForecast, part: float, goal: float) -> Removals:
        plan = self._plan(graph, part, 0.0)
        if not plan.remove_until(lambda removals: forecast(removals)[self.measure], goal):
            raise UserError(
                f"pruner.args.target: {self.measure} cannot come down to {goal:,.0f}, "
                f"{forecast(plan.removals())[self.measure]:,.0f} is the least. {self._left(graph, plan)}"
            )
        return plan.removals()

    def _faster(
        self, graph: ChannelGraph, forecast: SizeForecast, example: Tensor, part: float, original: dict[str, Any]
    ) -> Removals:
        goal = self.value if self.measure == "latency" else self.value / original["latency_ms"]
        if goal >= 1:
            raise UserError(
                f"pruner.args.target: the network takes {original['latency_ms']:.3g} ms already, {self.value} is no aim"
            )
        batch = example[:1].repeat_interleave(self.batch_size, dim=0)

        def macs(removals: Removals) -> float:
            return forecast(removals)["macs"]

        def choose(share: float, most: dict[str, int]) -> Removals:
            plan = self._plan(graph, part, 0.0)
            plan.most = most
            plan.remove_until(macs, share * original["macs"], fill=False)
            return plan.removals()

        def measure(removals: Removals) -> float:
            network = copy.deepcopy(graph.network)
            self._graph(network, example).cut(removals)
            files = {"original": original["onnx"], "cut": onnx_bytes(network, example)}
            return ratio(side_by_side(files, batch, self.threads), "cut", "original")

        search = LatencySearch(choose, macs, measure)
        if part * self.iterative_steps <= 1 and (least := search.latency(0.0)) > goal:
            raise UserError(
                f"pruner.args.target: {self.measure} cannot come down to {goal:.3g} of the original's, {least:.3g} is the "
                "least"
            )
        found = search.find(_on_the_way(goal, part), last=part == 1.0)
        if not found:
            raise UserError(
                f"pruner.args.target: {self.measure} {self.value} was not met by any of the cuts that were tried"
            )
        return found

    def _plan(self, graph: ChannelGraph, part: float, share: float) -> Plan:
        """A plan in which each scope has lost `share`, and each layer named in `ratios` what it is to lose by now."""
        worth = {}
        for group in graph.groups:
            value = self.importance(group.root)
            if value is not None:
                worth[group.name] = value.detach().float().cpu().numpy().reshape(group.parts, group.units).mean(0)
        if graph.groups and not worth:
            name, network = type(self.importance).__name__, type(graph.network).__name__
            raise UserError(
                f"pruner.args.importance: nothing in {network} has what {name} goes by; MagnitudeImportance always has"
            )
        groups = [group for group in graph.groups if group.name in worth]
        own = {
            group.name: ratio
            for pattern, ratio in self.ratios.items()
            for group in groups
            if any(_means(pattern, name) for name, side, _ in group.touched if side == "out")
        }
        scopes = {g.name: g.kind if self.isomorphic else "all" if self.global_pruning else g.name for g in groups}
        scopes |= {name: name for name in own}
        plan = Plan(groups, worth, self._widths, scopes, self.limits)
        plan.remove_share({scope: own[scope] * part if scope in own else share for scope in plan.scopes})
        plan.settled |= own.keys()
        return plan

    def _left(self, graph: ChannelGraph, plan: Plan | None = None) -> str:
        """Why no more goes than now, or than by the plan, in words."""
        if not graph.groups:
            return (
                f"Nothing in {type(graph.network).__name__} can be removed: all its layers are kept, or pass on what is kept"
            )
        limits = self.limits
        widths = {g.name: plan.width(g.name) if plan and g.name in plan.groups else g.width for g in graph.groups}
        layers = ", ".join(f"{name} {width} of {self._widths[name]}" for name, width in list(widths.items())[:6])
        more = f" and {len(graph.groups) - 6} more" if len(graph.groups) > 6 else ""
        return (
            f"What is left of the channels is: {layers}{more}; round_to {limits.round_to}, min_channels "
            f"{limits.min_channels} and max_channel_sparsity {limits.max_channel_sparsity} say what stays, and "
            f"{type(self.importance).__name__} may not know what all are worth"
        )


def _on_the_way(goal: float, part: float) -> float:
    """The share that is left after `part` of the steps, if widths, of which sizes are the squares, shrink evenly."""
    return (1 - part * (1 - goal**0.5)) ** 2


def _matching(pattern: str, names: list[str], key: str) -> set[str]:
    """Those of the modules that the pattern means. Raises UserError."""
    try:
        found = {name for name in names if _means(pattern, name)}
    except re.error as error:
        raise UserError(f'pruner.args.{key}: "{pattern}" is no regular expression: {error}') from None
    if not found:
        raise UserError(f'pruner.args.{key}: no layer is called "{pattern}"{did_you_mean(pattern, names)}')
    return found


def _means(pattern: str, name: str) -> bool:
    """Whether it is the module of that name, one inside it, or matches the regular expression."""
    return name == pattern or name.startswith(f"{pattern}.") or re.fullmatch(pattern, name) is not None
