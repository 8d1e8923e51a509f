import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from tqdm import tqdm

from base import BaseTrainer
from trainer.evaluate import Meters, evaluate
from utils.hints import PositiveFloat, PositiveInt

SECONDS_BETWEEN_LINES = 10.0  # of progress within an epoch, where there is no terminal for a bar


class Trainer(BaseTrainer):
    """The supervised loop: forward, loss, backward, step.

    Args:
        clip_grad_norm: scale the gradients down to this common norm where it is larger
        grad_accum_steps: batches whose gradients make one optimizer step together, as one batch of their joint size
    """

    def __init__(
        self,
        *args: Any,
        clip_grad_norm: PositiveFloat | None = None,
        grad_accum_steps: PositiveInt = 1,
        **kwargs: Any,
    ):
        self.clip_grad_norm, self.grad_accum_steps = clip_grad_norm, grad_accum_steps
        super().__init__(*args, **kwargs)
        self.log_interval = max(1, self.len_epoch // 10)
        self._last_line = time.monotonic()
        self._stream: Iterator | None = None
        self._meters_state: dict | None = None

    def steps_per_epoch(self) -> int:
        return -(-self.len_epoch // self.grad_accum_steps)

    def after_backward(self) -> None:
        """Called between the backward pass and the optimizer's step, with the gradients in place. Meant to be empty."""

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        self.model.train()
        self.meters = Meters(self.metrics, self.engine.device)
        if self._meters_state is not None:
            self.meters.load_state_dict(self._meters_state)
            self._meters_state = None
        begun, counted = time.perf_counter(), self.meters.count
        with self._bar(f"epoch {epoch}/{self.epochs}", self.len_epoch, self.step) as bar:
            for data, target in map(self.engine.to_device, self._rest_of_epoch(epoch)):
                output = self.model(data)
                loss = self.criterion(output, target)
                self.meters.update(output, target, loss)
                self.engine.backward(loss / self._batches_in_step())
                self.step += 1
                if self.step % self.grad_accum_steps == 0 or self.step == self.len_epoch:
                    self._optimizer_step()
                bar.update()
                if self.step % self.log_interval == 0 or self.step == self.len_epoch:
                    self._log_progress(epoch, bar, data)
        speed = (self.meters.count - counted) / (time.perf_counter() - begun)
        return self.meters.result() | {"samples_per_second": speed}

    def _valid_epoch(self, epoch: int) -> dict[str, float]:
        if self.valid_data_loader is None:
            return {}
        batches = self._until_stopped(self.valid_data_loader)
        return evaluate(self.evaluated_model, batches, self.criterion, self.metrics, self.engine)

    def _optimizer_step(self) -> None:
        self.after_backward()
        self.engine.optimizer_step(self.optimizer, self.clip_grad_norm)
        self.schedule.after_step()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        if self.signals.received is not None:
            self.fail_unless_finite("loss", self.meters.recent_loss())
            self.signals.check()

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
            self.recorder.pictures(data)

    def _until_stopped(self, batches: Iterable) -> Iterator:
        for batch in batches:
            self.signals.check()
            yield batch

    def _bar(self, title: str, total: int, done: int) -> tqdm:
        # disable=None: no bar where the output is no terminal; plain lines take its place
        quiet = True if self.verbosity < 2 else None
        return tqdm(desc=title, total=total, initial=done, leave=False, disable=quiet, dynamic_ncols=True)

    def state_dict(self) -> dict:
        state = super().state_dict()
        state["trainer"]["meters"] = self.meters.state_dict() if self.step else None
        return state

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._meters_state = state["trainer"]["meters"]
        self._stream = None
