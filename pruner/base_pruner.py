from abc import ABC, abstractmethod
from pathlib import Path
from typing import TypedDict

from torch import Tensor, nn

LIMITS = {"max_accuracy_drop": "accuracy", "max_escape_drop": "escape"}  # on which result of a step


class Original(TypedDict, total=False):
    """The network before the first cut: its size, and its ONNX file with the latency of that.

    latency_ms is None and the file does not exist if the network cannot be exported.
    """

    channels: int
    macs: int
    params: int
    latency_ms: float | None
    onnx: Path | bytes  # the file or its content


class BasePruner(ABC):
    """Makes a network smaller, step by step: write `prune`.

    The network is trained between the steps, and the run may be interrupted there: what the next
    step needs to know belongs in `state_dict`.
    """

    needs_gradients = False  # whether prune() reads the loss's gradients from the parameters
    sparsifies = False  # whether regularize() does something
    max_accuracy_drop: float | None = None  # a step that loses more ends the run, and is not kept
    max_escape_drop: float | None = None  # likewise if it misses more of inspection.target
    threads = batch_size = 1  # for the latency measurement
    aim: dict[str, float]  # what the last step should reach, for the report: {"macs": 0.3}

    @property
    def limit(self) -> dict[str, float]:
        """The one of these that is set, by its name; or none."""
        return {name: value for name in LIMITS if (value := getattr(self, name)) is not None}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "cut" in vars(cls) and "prune" not in vars(cls):
            cls.prune = cls.cut  # what the method was called before November 2026

    @abstractmethod
    def prune(self, network: nn.Module, example: Tensor, step: int, original: Original) -> bool:
        """Remove channels from the network, in place. Returns True if this was the last step.

        `step` counts from 1, `example` is a batch of two inputs. The network is left in evaluation
        mode. If nothing more can be removed, it stays as it is, and this was the last step.
        """

    def plan_steps(self, network: nn.Module, example: Tensor, original: Original) -> list[str]:
        """Hook before the first step: lines for the log that say what each step will leave.

        None by default. Raises UserError if the aim cannot be reached.
        """
        return []

    def begin_sparse(self, network: nn.Module, example: Tensor) -> None:
        """Hook before each epoch ahead of the first step, in any mode; does nothing by default."""

    def regularize(self, network: nn.Module) -> None:
        """Hook in these epochs, to change gradients so that channels become unimportant."""

    def state_dict(self) -> dict:
        """What the next step depends on, beside the network."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Continue from what `state_dict` returned."""
