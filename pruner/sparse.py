"""Pruners that make channels unimportant before they cut them, by gradients in `trainer.sparse_epochs`."""

from typing import Any

from torch import Tensor, nn

from pruner.pruners import MagnitudePruner
from utils.hints import NonNegativeFloat, PositiveFloat


class _Sparse(MagnitudePruner):
    """By the regularizer of torch-pruning's class.

    Args:
        reg: strength of the sparsity gradient
    """

    sparsifies = True

    def __init__(
        self, *args: Any, importance: str | dict = "GroupMagnitudeImportance", reg: NonNegativeFloat = 1e-4, **kwargs: Any
    ):
        super().__init__(*args, importance=importance, **kwargs)
        self.reg = reg

    def options(self) -> dict[str, Any]:
        return {"reg": self.reg}

    def begin_sparse(self, network: nn.Module, example: Tensor) -> None:
        if self._sparse is None:
            was_training = network.training
            self._sparse = self._graph(network.eval(), example).library
            network.train(was_training)

    def regularize(self, network: nn.Module) -> None:
        self._sparse.regularize(network)


class BNScalePruner(_Sparse):
    """Network slimming (Liu et al., arXiv:1708.06519): batch norms' scales are drawn to zero, the smallest go."""

    library = "BNScalePruner"

    def __init__(self, *args: Any, importance: str | dict = "BNScaleImportance", **kwargs: Any):
        super().__init__(*args, importance=importance, **kwargs)


class GroupNormPruner(_Sparse):
    """Group sparsity (Fang et al., arXiv:2301.12900): what hangs together is drawn to zero together.

    Args:
        alpha: how much more the least important group is drawn than the most important, as a power of 2
    """

    library = "GroupNormPruner"

    def __init__(self, *args: Any, alpha: PositiveFloat = 4.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.alpha = alpha

    def options(self) -> dict[str, Any]:
        return super().options() | {"alpha": self.alpha}

    def regularize(self, network: nn.Module) -> None:
        self._sparse.regularize(network, alpha=2**self.alpha)


class GrowingRegPruner(_Sparse):
    """Growing regularization (Wang et al., arXiv:2012.09243): the less important, the more it is drawn, epoch by epoch.

    Args:
        reg: strength of the sparsity gradient at first
        delta_reg: how much it grows in an epoch, for the least important
    """

    library = "GrowingRegPruner"

    def __init__(self, *args: Any, delta_reg: NonNegativeFloat = 1e-4, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.delta_reg = delta_reg
        self._strengths: list[Tensor] = []

    def options(self) -> dict[str, Any]:
        return super().options() | {"delta_reg": self.delta_reg}

    def begin_sparse(self, network: nn.Module, example: Tensor) -> None:
        fresh = self._sparse is None
        super().begin_sparse(network, example)
        strengths = self._sparse.group_reg
        if fresh and self._strengths:
            self._sparse.group_reg = dict(zip(strengths, self._strengths, strict=True))
        if not fresh or self._strengths:
            self._sparse.update_reg()
        self._strengths = list(self._sparse.group_reg.values())

    def state_dict(self) -> dict:
        return super().state_dict() | {"strengths": self._strengths}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._strengths, self._sparse = state["strengths"], None
