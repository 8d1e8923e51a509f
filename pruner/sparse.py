"""Pruners that first make channels unimportant, by a regularizer in `trainer.sparse_epochs`."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from pruner.pruners import MagnitudePruner
from utils.config.hints import NonNegativeFloat, PositiveFloat


@dataclass(eq=False)
class _Sparse(MagnitudePruner):
    """Uses the regularizer of torch-pruning's class.

    Args:
        reg: strength of the sparsity gradient
    """

    sparsifies = True
    options: ClassVar[tuple[str, ...]] = ("reg",)

    importance: str | dict = "GroupMagnitudeImportance"
    reg: NonNegativeFloat = 1e-4

    def __post_init__(self):
        super().__post_init__()
        self._pruner = None  # torch-pruning's

    def begin_sparse(self, network: nn.Module, example: Tensor) -> None:
        if self._pruner is None:
            self._pruner = self._graph(network.eval(), example).library

    def regularize(self, network: nn.Module) -> None:
        self._pruner.regularize(network)


@dataclass(eq=False)
class BNScalePruner(_Sparse):
    """Network slimming (Liu et al., arXiv:1708.06519): pushes the scales of batch norms to zero."""

    library = "BNScalePruner"

    importance: str | dict = "BNScaleImportance"


@dataclass(eq=False)
class GroupNormPruner(_Sparse):
    """Group sparsity (Fang et al., arXiv:2301.12900): pushes connected channels to zero together.

    Args:
        alpha: the least important channel is pushed 2**alpha times as hard as the most important
    """

    library = "GroupNormPruner"
    options: ClassVar[tuple[str, ...]] = ("reg", "alpha")

    alpha: PositiveFloat = 4.0

    def regularize(self, network: nn.Module) -> None:
        self._pruner.regularize(network, alpha=2**self.alpha)


@dataclass(eq=False)
class GrowingRegPruner(_Sparse):
    """Growing regularization (Wang et al., arXiv:2012.09243): pushes harder each epoch.

    Args:
        reg: strength of the sparsity gradient at first
        delta_reg: how much it grows in an epoch, for the least important channel
    """

    library = "GrowingRegPruner"
    options: ClassVar[tuple[str, ...]] = ("reg", "delta_reg")

    delta_reg: NonNegativeFloat = 1e-4

    def __post_init__(self):
        super().__post_init__()
        self._strengths: list[Tensor] = []

    def begin_sparse(self, network: nn.Module, example: Tensor) -> None:
        super().begin_sparse(network, example)
        pruner = self._pruner
        if self._strengths:  # not the first epoch
            pruner.group_reg = dict(zip(pruner.group_reg, self._strengths, strict=True))
            pruner.update_reg()
        self._strengths = list(pruner.group_reg.values())

    def state_dict(self) -> dict:
        return super().state_dict() | {"strengths": self._strengths}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._strengths, self._pruner = state["strengths"], None
