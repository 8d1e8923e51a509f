import copy
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from base import BaseTrainer
from base.samples import collate
from trainer.evaluate import Meters, evaluate
from trainer.features import Tail, reusable_tail, with_features
from utils import distributed
from utils.engine import unwrap
from utils.errors import UserError
from utils.hints import PositiveFloat, PositiveInt
from utils.networks import auxiliary_outputs, main_output, set_training_mode
from utils.summary import summary

AUXILIARY_WEIGHT = 0.3
SECONDS_BETWEEN_LINES = 10.0  # of progress within an epoch, where there is no terminal for a bar


class Trainer(BaseTrainer):
    """The supervised loop: forward, loss, backward, step.

    Args:
        clip_grad_norm: scale the gradients down to this common norm where it is larger
        grad_accum_steps: batches whose mean gradient makes one optimizer step; fewer at an epoch's end
        reuse_features: where the backbone is frozen and nothing is random before the head, compute what it gives once
    """

    def __init__(
        self,
        *args: Any,
        clip_grad_norm: PositiveFloat | None = None,
        grad_accum_steps: PositiveInt = 1,
        reuse_features: bool = True,
        **kwargs: Any,
    ):
        self.clip_grad_norm, self.grad_accum_steps = clip_grad_norm, grad_accum_steps
        self.reuse_features, self.tail = reuse_features, None
        super().__init__(*args, **kwargs)
        self.log_interval = max(1, self.len_epoch // 10)
        self._last_line = time.monotonic()
        self._stream: Iterator | None = None
        self._meters_state: dict | None = None

    def steps_per_epoch(self) -> int:
        return -(-self.len_epoch // self.grad_accum_steps)

    def train(self) -> dict[str, float]:
        self._rehearse()
        return super().train()

    def _rehearse(self) -> None:
        """Show the network, and try network, loss and metrics on two samples. Raises UserError where they do not fit."""
        samples = self.data_loader.dataset.__getitems__(
            [(0, position, 0) for position in range(2)][: len(self.data_loader.dataset)]
        )
        batch = self.engine.to_device(collate(samples))
        if not (isinstance(batch, list | tuple) and len(batch) == 2 and isinstance(batch[0], torch.Tensor)):
            raise UserError(f"data_loader: {type(self).__name__} wants samples of (input, target), tensors or numbers")
        data, target = batch
        table, output = summary(unwrap(self.model), data)
        self.logger.debug(f"{type(unwrap(self.model)).__name__}\n{table}")
        classes = self.data_loader.classes
        if classes is not None and output.ndim == 2 and output.shape[1] < len(classes):
            raise UserError(f"arch: the network gives {output.shape[1]} outputs, but there are {len(classes)} classes")
        for name, function in {"loss": self.criterion, **self.metrics}.items():
            try:
                copy.deepcopy(function)(output, target)
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise UserError(
                    f"{name} does not fit the network's output ({_described(output)}) "
                    f"and the targets ({_described(target)}): {reason}"
                ) from error

    def loss(self, output: Any, target: torch.Tensor) -> torch.Tensor:
        """The criterion's value for a batch; auxiliary heads count 0.3 each (Szegedy et al., arXiv:1409.4842)."""
        loss = self.criterion(main_output(output), target)
        for extra in auxiliary_outputs(output):
            loss = loss + AUXILIARY_WEIGHT * self.criterion(extra, target)
        return loss

    def after_backward(self) -> None:
        """Called between the backward pass and the optimizer's step, with the gradients in place. Meant to be empty."""

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        if self.reuse_features and self.tail is None:
            self._compute_features()
        set_training_mode(self.model)
        self.meters = Meters(self.metrics, self.engine.device)
        if self._meters_state is not None:
            self.meters.load_state_dict(self._meters_state)
            self._meters_state = None
        begun, counted = time.perf_counter(), self.meters.count
        with self._bar(f"epoch {epoch}/{self.epochs}", self.len_epoch, self.step) as bar:
            for data, target in map(self.engine.to_device, self._rest_of_epoch(epoch)):
                own = self.data_loader.share_of((epoch - 1) * self.len_epoch + self.step)
                ends_step = self._ends_step(self.step + 1)
                with self.engine.accumulating(self.model, more=not ends_step):
                    output = self.engine.forward(self.model, data)
                    loss = self.loss(output, target)
                    if own > 0:
                        self.meters.update(main_output(output), target, loss)
                    self.engine.backward(loss, own / self._batches_in_step())
                self.step += 1
                if ends_step:
                    self._optimizer_step()
                bar.update()
                if self.step % self.log_interval == 0 or self.step == self.len_epoch:
                    self._log_progress(epoch, bar, data)
        log = self.meters.result()
        if seen := sum(distributed.of_all(self.meters.count - counted)):  # else all was done before a resume
            log["samples_per_second"] = seen / (time.perf_counter() - begun)
        return log

    def _valid_epoch(self, epoch: int) -> dict[str, float]:
        if self.valid_data_loader is None:
            return {}
        batches = self._until_stopped(self.valid_data_loader)
        return evaluate(self.evaluated_model, batches, self.criterion, self.metrics, self.engine)

    def _compute_features(self) -> None:
        network = unwrap(self.model)
        self.reuse_features = self.freezing.rule == "backbone" and self.freezing.until is None
        if self.reuse_features and (tail := reusable_tail(network, self.data_loader, self.engine)):
            self.logger.info("the backbone is frozen and nothing is random: its features are computed once")
            self.data_loader = with_features(network, tail, self.data_loader, self.engine)
            if self.valid_data_loader is not None:
                self.valid_data_loader = with_features(network, tail, self.valid_data_loader, self.engine)
            self.model, self.tail = self.engine.prepare(Tail(network, tail)), tail
        self.reuse_features = self.tail is not None

    @property
    def evaluated_model(self) -> nn.Module:
        model = super().evaluated_model
        return model if self.tail is None or model is self.model else Tail(model, self.tail)

    def _optimizer_step(self) -> None:
        self.engine.unscale(self.optimizer)
        self.after_backward()
        self.engine.optimizer_step(self.optimizer, self.clip_grad_norm)
        self.schedule.after_step()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        if self.signals.arrived():
            self.fail_unless_finite("loss", self.meters.recent_loss())
            self.signals.check()

    def _ends_step(self, batches: int) -> bool:
        """Whether the optimizer takes a step after so many batches of an epoch."""
        return batches % self.grad_accum_steps == 0 or batches == self.len_epoch

    def _batches_in_step(self) -> int:
        """How many batches share the optimizer step that the current one belongs to; fewer at the epoch's end."""
        first = self.step - self.step % self.grad_accum_steps
        return min(self.grad_accum_steps, self.len_epoch - first)

    def _rest_of_epoch(self, epoch: int) -> Iterator:
        # One stream for all epochs: workers go on preparing the next batches while the validation runs.
        if self._stream is None:
            self._stream = self.data_loader.batches((epoch - 1) * self.len_epoch + self.step)
        return islice(self._stream, self.len_epoch - self.step)

    def _log_progress(self, epoch: int, bar: tqdm, data: torch.Tensor) -> None:
        loss = self.meters.recent_loss()
        self.fail_unless_finite("loss", loss)
        bar.set_postfix(loss=f"{loss:.4g}")
        if bar.disable and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.logger.debug(f"epoch {epoch}  batch {self.step}/{self.len_epoch}  loss {loss:.4g}")
        self.writer.set_step((epoch - 1) * self.len_epoch + self.step)
        self.writer.add_scalar("loss", loss)
        if epoch == 1 and self.step == min(self.log_interval, self.len_epoch):
            self.writer.pictures(data)

    def _until_stopped(self, batches: Iterable) -> Iterator:
        batches, own = len(batches), iter(batches)
        for _ in range(batches):  # all processes ask equally often, also one that has no share of the last batch
            self.signals.check()
            yield from islice(own, 1)

    def _bar(self, title: str, total: int, done: int) -> tqdm:
        # disable=None: no bar where the output is no terminal; plain lines take its place
        quiet = True if self.verbosity < 2 or not distributed.is_first() else None
        return tqdm(desc=title, total=total, initial=done, leave=False, disable=quiet, dynamic_ncols=True)

    def state_dict(self) -> dict:
        state = super().state_dict()
        state["trainer"]["meters"] = self.meters.state_dict() if self.step else None
        return state

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._meters_state = state["trainer"].get("meters")
        self._stream = None


def _described(value: Any) -> str:
    return f"{'x'.join(map(str, value.shape))} {value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__
