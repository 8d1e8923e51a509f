from abc import ABC, abstractmethod

from torch import Tensor, nn


class BasePruner(ABC):
    """Makes a network smaller, step by step: write `cut`.

    A training run goes between the steps, so what a pruner has to remember belongs into its state_dict.
    """

    needs_gradients = False  # whether cut() wants the loss's gradients in the parameters
    sparsifies = False  # whether regularize() does something
    max_accuracy_drop: float | None = None  # the run ends, a step back, where validation accuracy falls by more
    threads = batch_size = 1  # with which latency is measured
    aim: dict[str, float]  # what it is to come to in the end, for the report: {"macs": 0.3}

    @abstractmethod
    def cut(self, network: nn.Module, example: Tensor, step: int, original: dict[str, float]) -> bool:
        """Remove from the network, in place, what goes in `step`, counted from 1; True where this was the last step.

        `example` is a batch of two of what the network takes, `original` what was measured of it before the first cut:
        channels, macs, params, latency_ms. Raises UserError where nothing can be removed.
        """

    def begin_sparse(self, network: nn.Module, example: Tensor) -> None:
        """Before each epoch that is to make channels unimportant. Meant to be empty."""

    def regularize(self, network: nn.Module) -> None:
        """Add to the gradients what makes channels unimportant. Meant to be empty."""

    def state_dict(self) -> dict:
        """What the next cut depends on, beside the network."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Go on from what state_dict gave."""
