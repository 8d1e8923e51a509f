"""The pruner that needs a criterion only; those that train for sparsity first are in sparse.py."""

import copy
import functools
import logging
import math
import re
import textwrap
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from exporter.latency import ratio, side_by_side
from exporter.onnx_exporter import onnx_bytes
from model.heads import main_output
from model.structure import describe, note_cut
from model.summary import multiply_adds
from pruner.base_pruner import LIMITS, BasePruner, Original
from pruner.criteria import PATH, build_importance, needs_gradients
from pruner.graph import (
    ADVICE,
    ChannelGraph,
    Removals,
    SizeForecast,
    explain_failure,
    output_layers,
)
from pruner.latency_search import LatencySearch
from pruner.plan import Plan
from pruner.report import plan_table
from pruner.sections import PruningTarget
from utils.config.hints import OpenShare, PositiveInt, Share
from utils.config.lookup import did_you_mean
from utils.errors import UserError

AIMS = ("channel_sparsity", "macs", "params", "latency", "latency_ms", *LIMITS)


@dataclass(eq=False)
class MagnitudePruner(BasePruner):
    """Removes the least important channels of each layer, together with all that depends on them.

    Args:
        iterative_steps: number of cuts, with training between them; fewer if some would be empty
        channel_sparsity: share of each layer's channels to remove in all
        target: another aim: {"macs": 0.3}, {"latency": 0.5}, {"max_accuracy_drop": 0.01}, ...
        importance: how important a channel is: one of torch-pruning's criteria, or your own
        global_pruning: rank the channels of all layers in one list, not each layer's in its own
        isomorphic: one list for layers that are connected alike (Fang et al., arXiv:2407.04616)
        round_to: widths become multiples of this; processors are fast with multiples of 8
        max_channel_sparsity: no layer loses a larger share of its channels
        min_channels: every layer keeps as many channels
        ignored_layers: layers that keep all outputs, by name or regular expression
        ratios: share that single layers lose, by name or regular expression
        dotted: paths beyond this project and torch-pruning that `importance` may name
    """

    library = "BasePruner"  # torch-pruning's class, whose regularizer is used
    options: ClassVar[tuple[str, ...]] = ()  # further arguments of that class

    iterative_steps: PositiveInt = 1
    channel_sparsity: OpenShare | None = None
    target: PruningTarget | None = None
    importance: str | dict = "MagnitudeImportance"
    global_pruning: bool = False
    isomorphic: bool = False
    round_to: PositiveInt = 8
    max_channel_sparsity: OpenShare = 0.95
    min_channels: PositiveInt = 1
    ignored_layers: list[str] | None = None
    ratios: dict[str, Share] | None = None
    dotted: Container[str] = ()

    def __post_init__(self):
        target = self.target or {}
        aims = [("channel_sparsity", self.channel_sparsity), *target.items()]
        aims = [(key, value) for key, value in aims if key in AIMS and value is not None]
        if len(aims) != 1:
            problem = f"not {' and '.join(k for k, _ in aims)} together" if aims else "none is set"
            raise UserError(
                "pruner.args: one aim is needed, channel_sparsity or one of target "
                f"({', '.join(AIMS)}); {problem}"
            )
        if self.global_pruning and self.isomorphic:
            raise UserError("pruner.args: choose one of global_pruning and isomorphic")
        self.aim, [(self.measure, self.value)] = dict(aims), aims
        self.threads, self.batch_size = target.get("threads", 1), target.get("batch_size", 1)
        self.by_latency = self.measure in ("latency", "latency_ms")
        if self.measure in LIMITS:
            setattr(self, self.measure, self.value)
        self.criterion = build_importance(self.importance, self.dotted)
        self.needs_gradients = needs_gradients(self.criterion)
        self._widths: dict[str, int] = {}  # of each group, before the first cut
        self._merged = 0  # steps that removed nothing so far

    def plan_steps(self, network: nn.Module, example: Tensor, original: Original) -> list[str]:
        steps, goal, least = self.iterative_steps, self._goal(original, 1.0), 0.0
        if self.by_latency and goal >= 1:
            already = f"the network already takes only {original['latency_ms']:.3g} ms"
            raise UserError(f"pruner.args.target: {self.measure} {self.value}: {already}")
        with explain_failure(network):
            forecast, _ = self._forecast(network, example)
            if forecast.graph.groups and not forecast.graph.rated:
                name = type(self.criterion).__name__
                nothing = f"{name} finds nothing that it can rate in {type(network).__name__}"
                raise UserError(f"{PATH}: {nothing}; MagnitudeImportance always does")
            plans: list[Removals] = [{}]
            for step in range(1, steps + 1):
                plans.append(self._choose(forecast, original, step / steps))
                forecast.graph.assume(plans[-1])
            if self.by_latency:
                least = self._search(forecast, original, 1.0).latency(0.0)
            elif self.measure in ("macs", "params"):
                least = self._size(forecast, original)(plans[-1])
        left = self._left(forecast.graph)
        if least > goal:
            reached = f"reduced to {goal:.3g} of the original's, only to {least:.3g}"
            raise UserError(f"pruner.args.target: {self.measure} cannot be {reached}. {left}")
        if not plans[-1]:
            raise UserError(f"pruner: the steps would remove nothing. {left}")
        # a step's own search measures for minutes, so here multiply-adds stand for latency
        note = " (estimated from the MACs)" if self.by_latency else ""
        table = plan_table([forecast(removals) for removals in plans], self.round_to)
        return [f"plan for {self.measure} {self.value}{note}:", *table, *textwrap.wrap(left, 80)]

    def prune(self, network: nn.Module, example: Tensor, step: int, original: Original) -> bool:
        before, steps = describe(network), self.iterative_steps
        with explain_failure(network):
            forecast, output = self._forecast(network, example)
            choose = self._choose_measured if self.by_latency else self._choose
            for number in range(min(step + self._merged, steps), steps + 1):
                if removals := choose(forecast, original, number / steps):
                    break
            else:
                why = f"the aim is reached, or the limits are. {self._left(forecast.graph)}"
                logging.getLogger("pruner").info(f"step {step} removes nothing more: {why}")
            self._merged, is_last = number - step, number == steps
            if not is_last and not self.by_latency:  # whether the other steps would remove nothing
                forecast.graph.assume(removals)
                is_last = forecast(choose(forecast, original, 1.0)) == forecast(removals)
            forecast.graph.prune(removals)
            note_cut(network, before)
            with torch.no_grad():
                pruned_output = main_output(network(example))
        if pruned_output.shape != output.shape:
            shapes = f"{list(output.shape)} to {list(pruned_output.shape)}"
            raise UserError(f"pruner: the output changed from {shapes}; {ADVICE}")
        return is_last

    def state_dict(self) -> dict:
        return {"widths": self._widths, "merged": self._merged}

    def load_state_dict(self, state: dict) -> None:
        # before November 2026 no steps were merged
        self._widths, self._merged = dict(state["widths"]), state.get("merged", 0)

    def _graph(self, network: nn.Module, example: Tensor) -> ChannelGraph:
        import torch_pruning

        names = [name for name, _ in network.named_modules() if name]
        kept, key = set(output_layers(network, example)), "pruner.args.ratios"
        for pattern in self.ratios or {}:
            for name in sorted(_find(pattern, names, key) & kept):
                raise UserError(f"{key}: {name} keeps all: it gives the network's output")
        for pattern in self.ignored_layers or []:
            kept |= _find(pattern, names, "pruner.args.ignored_layers")
        library = getattr(torch_pruning.pruner, self.library)
        options = {name: getattr(self, name) for name in self.options}
        library = functools.partial(library, importance=self.criterion, **options)
        graph = ChannelGraph(network, example, kept, library)
        for group in graph.groups.values():
            group.original = self._widths.setdefault(group.name, group.left)
        return graph

    def _forecast(self, network: nn.Module, example: Tensor) -> tuple[SizeForecast, Tensor]:
        """The network's size after a cut, its groups rated, and its output."""
        macs, output = multiply_adds(network.eval(), example)
        graph = self._graph(network, example)
        self._rate(graph)
        return SizeForecast(graph, macs), main_output(output)

    def _goal(self, original: Original, part: float) -> float:
        """The share of a size or a latency that is left after `part` of the way to the aim, if
        widths, the roots of sizes, shrink evenly.
        """
        goal = self.value
        if self.measure == "latency_ms":
            # zero if the network cannot be exported: measuring a candidate says why
            goal /= original["latency_ms"] or math.inf
        return (1 - part * (1 - goal**0.5)) ** 2

    def _size(self, forecast: SizeForecast, original: Original) -> Callable[[Removals], float]:
        """Gives the share of the original's multiply-adds or parameters that removals leave."""
        measure = "params" if self.measure == "params" else "macs"
        return lambda removals: forecast(removals)[measure] / original[measure]

    def _choose(self, forecast: SizeForecast, original: Original, part: float) -> Removals:
        """What to remove so that `part` of the way is done; multiply-adds stand for latency."""
        plan = Plan(forecast.graph.rated, part)
        if self.measure in LIMITS:
            return plan.remove_share(self.max_channel_sparsity * part)
        if self.measure == "channel_sparsity":
            return plan.remove_share(self.value * part)
        return plan.remove_until(self._size(forecast, original), self._goal(original, part))

    def _choose_measured(self, forecast: SizeForecast, original: Original, part: float) -> Removals:
        search = self._search(forecast, original, part)
        return search.find(self._goal(original, part), last=part == 1.0)

    def _search(self, forecast: SizeForecast, original: Original, part: float) -> LatencySearch:
        example = forecast.graph.example
        batch = example[:1].repeat_interleave(self.batch_size, dim=0)

        def measure(removals: Removals) -> float:
            network = copy.deepcopy(forecast.graph.network)
            self._graph(network, example).prune(removals)
            files = {"original": original["onnx"], "pruned": onnx_bytes(network, example)}
            return ratio(side_by_side(files, batch, self.threads), "pruned", "original")

        plan = functools.partial(Plan, forecast.graph.rated, part)
        return LatencySearch(plan, self._size(forecast, original), measure)

    def _rate(self, graph: ChannelGraph) -> None:
        """Give each group that the criterion can rate all that a Plan needs to know."""
        for group in graph.groups.values():
            values = self.criterion(group.root)
            if values is None:
                continue
            values = values.detach().float().cpu().numpy()
            group.importance = values.reshape(group.parts, group.units).mean(0)
            least = round(group.original * (1 - self.max_channel_sparsity) - 1e-6)
            counts = np.arange(1, group.units)
            left = (group.units - counts) * group.parts
            is_allowed = (left >= max(least, self.min_channels)) & (left % self.round_to == 0)
            group.allowed = counts[is_allowed].tolist()
            outputs = [name for name, side, _ in group.touched if side == "out"]
            for pattern, share in (self.ratios or {}).items():
                if any(_matches(pattern, name) for name in outputs):
                    group.share = share
            group.scope = group.name
            if group.share is None and (self.isomorphic or self.global_pruning):
                group.scope = group.kind if self.isomorphic else "all"

    def _left(self, graph: ChannelGraph) -> str:
        """A sentence about what stays of each group by plan, and about the limits to that."""
        if not graph.groups:
            network = type(graph.network).__name__
            return f"Nothing in {network} can be removed: all layers are kept, or feed one that is"
        groups = sorted(graph.groups.values(), key=lambda g: (-g.left / g.original, g.name))
        layers = ", ".join(f"{g.name} {g.left} of {g.original}" for g in groups[:6])
        return (
            f"Channels left: {layers}{', ...' if groups[6:] else ''}; the limits "
            f"are round_to {self.round_to}, min_channels {self.min_channels}, max_channel_sparsity "
            f"{self.max_channel_sparsity}, and what {type(self.criterion).__name__} can rate"
        )


def _find(pattern: str, names: list[str], key: str) -> set[str]:
    """The modules that the pattern matches. Raises UserError if there are none."""
    try:
        matching = {name for name in names if _matches(pattern, name)}
    except re.error as error:
        raise UserError(f'{key}: "{pattern}" is not a regular expression: {error}') from None
    if not matching:
        raise UserError(f'{key}: there is no layer "{pattern}"{did_you_mean(pattern, names)}')
    return matching


def _matches(pattern: str, name: str) -> bool:
    """Whether it is the module of that name, one inside it, or matches the regular expression."""
    inside = name == pattern or name.startswith(f"{pattern}.")
    return inside or re.fullmatch(pattern, name) is not None
