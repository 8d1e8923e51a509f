"""Pruners that first make channels unimportant, by other gradients in `trainer.sparse_epochs`."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from pruner.pruners import MagnitudePruner
from utils.config.hints import NonNegativeFloat, PositiveFloat

if TYPE_CHECKING:
    from torch_pruning.pruner import BasePruner


class _Sparse(MagnitudePruner):
    """Uses the regularizer of torch-pruning's class.

    Args:
        reg: strength of the sparsity gradient
    """

    sparsifies = True

    def __init__(
        self,
        *args,
        importance: str | dict = "GroupMagnitudeImportance",
        reg: NonNegativeFloat = 1e-4,
        **kwargs,
    ):
        super().__init__(*args, importance=importance, **kwargs)
        self.options["reg"] = reg
        self._regularizer: BasePruner | None = None

    def begin_sparse(self, network: nn.Module, example: Tensor) -> None:
        if self._regularizer is None:
            self._regularizer = self._graph(network.eval(), example).library

    def regularize(self, network: nn.Module) -> None:
        self._regularizer.regularize(network)


class BNScalePruner(_Sparse):
    """Network slimming (Liu et al., arXiv:1708.06519): draws the scales of batch norms to zero."""

    library = "BNScalePruner"

    def __init__(self, *args, importance: str | dict = "BNScaleImportance", **kwargs):
        super().__init__(*args, importance=importance, **kwargs)


class GroupNormPruner(_Sparse):
    """Group sparsity (Fang et al., arXiv:2301.12900): draws connected channels to zero together.

    Args:
        alpha: the least important channel is drawn 2**alpha times as strongly as the most important
    """

    library = "GroupNormPruner"

    def __init__(self, *args, alpha: PositiveFloat = 4.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.options["alpha"] = alpha

    def regularize(self, network: nn.Module) -> None:
        self._regularizer.regularize(network, alpha=2 ** self.options["alpha"])


class GrowingRegPruner(_Sparse):
    """Growing regularization (Wang et al., arXiv:2012.09243): draws unimportant channels ever more.

    Args:
        reg: strength of the sparsity gradient at first
        delta_reg: how much it grows in an epoch, for the least important channel
    """

    library = "GrowingRegPruner"

    def __init__(self, *args, delta_reg: NonNegativeFloat = 1e-4, **kwargs):
        super().__init__(*args, **kwargs)
        self.options["delta_reg"] = delta_reg
        self._strengths: list[Tensor] = []

    def begin_sparse(self, network: nn.Module, example: Tensor) -> None:
        super().begin_sparse(network, example)
        regularizer = self._regularizer
        if self._strengths:  # not the first epoch
            regularizer.group_reg = dict(zip(regularizer.group_reg, self._strengths, strict=True))
            regularizer.update_reg()
        self._strengths = list(regularizer.group_reg.values())

    def state_dict(self) -> dict:
        return super().state_dict() | {"strengths": self._strengths}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._strengths, self._regularizer = state["strengths"], None
