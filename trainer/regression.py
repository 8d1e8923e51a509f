"""The task for numbers."""

from collections.abc import Sequence

from torch import Tensor

from base.base_task import Model, Step
from base.samples import Batch
from trainer.tasks import SupervisedTask, input_and_target, one_tensor, run_model


class RegressionTask(SupervisedTask):
    """Numbers (N,), (N, 1) or several per sample (N, k), of the network and as targets.

    (N, 1) counts as (N,), so that losses and metrics compare number by number.
    """

    worst = "max error"
    charts = (("true", "predicted"), ("predicted", "residual"))

    def step(self, model: Model, batch: Batch) -> Step:
        data, target = input_and_target(batch)
        output = _flat(one_tensor(self, run_model(model, data)))
        target = _flat(target.float())
        return Step(self.criterion(output, target), output, target, len(target), data)

    def columns(self, step: Step) -> dict[str, Sequence]:
        """True and predicted values, their difference, and its size (the mean of several)."""
        output, target = step.output.float(), step.target
        residual = output - target
        values = {"true": target, "predicted": output, "residual": residual}
        if output.ndim == 1:
            return {**values, "error": residual.abs()}
        columns = {
            f"{name} {number}": column
            for name, numbers in values.items()
            for number, column in enumerate(numbers.flatten(1).unbind(1))
        }
        return {**columns, "error": residual.abs().flatten(1).mean(1)}


def _flat(numbers: Tensor) -> Tensor:
    return numbers.squeeze(1) if numbers.shape[1:] == (1,) else numbers
