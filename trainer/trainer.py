import time
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from base import BaseDataLoader, BaseTrainer
from base.base_task import Step
from base.samples import Batch
from logger.files import aligned
from model.batch_norm import batch_norms, recompute_statistics, unsettled
from model.freezing import set_training_mode
from model.summary import summary
from trainer.answers import Answers, class_table, contradiction, find_doubts
from trainer.decisions import class_number, outlook, too_few
from trainer.evaluate import Meters, evaluate, progress
from trainer.features import Tail, reusable_tail, with_features
from trainer.rehearsal import check_kind, known_labels, rehearse
from trainer.tasks import AuxiliaryHeadsTask, LossTask, SupervisedTask
from trainer.workers import choose_workers
from utils import checkpoint
from utils.config.hints import PositiveFloat, PositiveInt
from utils.engine import distributed
from utils.engine.engine import Call, Running, map_tensors, unwrap
from utils.errors import UserError, explained

LOGGING = "_train_epoch", "_valid_epoch"  # a subclass's own may log more
COMPARED = 256  # samples, in training and in evaluation mode
STATISTICS_BATCHES = 20  # of training data, for what is computed from a sample of it
SECONDS_BETWEEN_LINES = 10.0  # of progress within an epoch, if there is no terminal for a bar


class Trainer(BaseTrainer):
    """The supervised loop: forward, loss, backward, step.

    Args:
        clip_grad_norm: scale the gradients down to this common norm if theirs is larger
        grad_accum_steps: batches whose mean gradient makes one optimizer step; an epoch's last step
            may have fewer
        reuse_features: if the backbone is frozen and nothing is random before the head, compute the
            head's input once
        batch_transforms: of training batches, on the device: MixUp, CutMix
    """

    not_kept = (
        *BaseTrainer.not_kept,
        "clip_grad_norm", "grad_accum_steps", "reuse_features", "batch_transforms", "answers",
        "tail", "target_number", "log_interval", "_last_line", "_stream", "meters",
        "running_statistics",
    )  # fmt: skip

    def __init__(
        self,
        *args: Any,
        clip_grad_norm: PositiveFloat | None = None,
        grad_accum_steps: PositiveInt = 1,
        reuse_features: bool = True,
        batch_transforms: list[nn.Module] | None = None,
        **kwargs: Any,
    ):
        self.batch_transforms = batch_transforms or []
        self.clip_grad_norm, self.grad_accum_steps = clip_grad_norm, grad_accum_steps
        self.reuse_features = reuse_features
        self.answers: dict[
            int, Tensor
        ] = {}  # counted in the validation of the last epoch and the best
        self.target_number: int | None = None  # of the class that must not be missed
        self.tail: str | None = None  # the part of the network that trains on stored features
        super().__init__(*args, **kwargs)
        if hasattr(self, "loss"):  # a subclass says how output and target make the loss
            self.task = LossTask(self.loss)
        self.log_interval = max(1, self.len_epoch // 10)
        self._last_line = time.monotonic()
        self._stream: Iterator[Batch] | None = None
        self.meters = Meters(self.metrics, self.engine.device, self.data_loader.classes)

    def set_model(self, model: nn.Module, optimizer: Optimizer) -> None:
        # batch norms' statistics that training continues with, while evaluation uses others
        self.running_statistics: dict[str, Tensor] = {}
        if self.grad_accum_steps > 1:
            self.engine.avoid_cuda_graphs("trainer.grad_accum_steps")
        super().set_model(model, optimizer)

    def steps_per_epoch(self) -> int:
        return -(-self.len_epoch // self.grad_accum_steps)

    def train(self) -> dict[str, float]:
        self.rehearse()
        try:
            log = super().train()
            for doubt in self.last_doubts():
                self.logger.warning(doubt)
            return log
        finally:
            self.end_workers()

    def end_workers(self) -> None:
        """End the processes that prepare batches; the next pass starts others."""
        self._stream = None
        for loader in (self.data_loader, self.valid_data_loader):
            if isinstance(loader, BaseDataLoader):
                loader.end_workers()

    def after_training(self) -> None:
        epoch = self.monitor.best_epoch
        if (counts := self.answers.get(epoch)) is not None and counts.numel():
            names = self.data_loader.classes or [str(number) for number in range(counts.shape[1])]
            lines = (f"  {line}" for line in aligned(class_table(counts, names)))
            self.logger.info("\n".join(["", f"validation of epoch {epoch}:", *lines]))

    def last_doubts(self) -> list[str]:
        """What is suspicious about the answers of the best epoch, or of the last one."""
        last = self.epoch - 1
        epoch, doubts = self.monitor.best_epoch or last, []
        if (counts := self.answers.get(epoch)) is not None:
            found = find_doubts(counts, self.data_loader.classes)
            doubts = [f"epoch {epoch}: {doubt}" for doubt in found]
        network = unwrap(self.model)
        if self.tail is None and last in self.answers and batch_norms(network):
            size = self.data_loader.sampler.batch_size
            batches = islice(self.first_batches(last), -(-COMPARED // size))
            doubts += contradiction(network, batches, self.task, self.engine)
        return doubts

    def check(self) -> None:
        self.reuse_features = False  # that would take all samples
        valid = self.valid_data_loader  # which is replaced by a batch of it
        self.rehearse()
        try:
            super().check()
        finally:
            self.valid_data_loader = valid
            self.end_workers()

    def after_backward(self) -> None:
        """Hook between backward pass and optimizer step; does nothing by default."""

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        if self.reuse_features and self.tail is None:
            self._store_features()
        buffers = dict(unwrap(self.evaluated_model).named_buffers())
        for name, running in self.running_statistics.items():
            buffers[name].copy_(running)
        self.running_statistics = {}
        set_training_mode(self.model)
        for network in self.task.networks():
            network.train()
        running = Running(self.engine, self.model)
        if self.step == 0:
            self.meters = Meters(self.metrics, self.engine.device, self.data_loader.classes)
        start_time, start_count = time.perf_counter(), self.meters.count
        with self._bar(epoch) as bar:
            for batch in self._rest_of_epoch(epoch):
                weight = self.data_loader.batch_weight((epoch - 1) * self.len_epoch + self.step)
                batches, ends_step = self._accumulation()
                with self.engine.accumulating(self.model, more=not ends_step):
                    for step in self.train_steps(running, batch):
                        self.engine.backward(step.loss, weight / batches)
                        if ends_step:
                            self._optimizer_step(step.optimizer)
                if weight > 0:
                    self.meters.update(step)
                self.step += 1
                if ends_step:
                    self._after_step()
                bar.update()
                if self.step % self.log_interval == 0 or self.step == self.len_epoch:
                    self._log_progress(epoch, bar, step.data)
        log = self.meters.result()
        count = sum(distributed.all_gather(self.meters.count - start_count))
        if count:  # none if the epoch was complete before a resume
            log["samples_per_second"] = count / (time.perf_counter() - start_time)
        self._settle_statistics(epoch)
        return log

    def _valid_epoch(self, epoch: int) -> dict[str, float]:
        if self.valid_data_loader is None:
            return {}
        batches = self._until_stopped(self.valid_data_loader)
        model, classes = self.evaluated_model, self.data_loader.classes
        answers = Answers(self.task, self.target_number)
        log = evaluate(model, batches, self.task, self.metrics, self.engine, answers.add, classes)
        best = self.monitor.best_epoch
        self.answers = {n: kept for n, kept in self.answers.items() if n == best}
        self.answers[epoch] = answers.counts()
        if self.target_number is not None:
            log |= answers.costs(self.config["inspection"])
        return log

    def _settle_statistics(self, epoch: int) -> None:
        """Recompute, for evaluation, the statistics of batch norms that still hold old values."""
        network, updates = unwrap(self.model), (epoch - 1) * self.len_epoch + self.step
        if names := unsettled(network, updates):
            self.engine.broadcast_buffers(network, self.ema and self.ema.module)
            network = unwrap(self.evaluated_model)
            self.running_statistics = self.recompute_statistics(network, names, epoch)

    def recompute_statistics(
        self, network: nn.Module, names: Iterable[str], epoch: int
    ) -> dict[str, Tensor]:
        """Recompute the statistics of the named batch norms. Returns the earlier ones."""
        for other in self.task.networks():
            other.eval()
        forward = partial(self.task.step, Running(self.engine, network))
        return recompute_statistics(network, names, forward, self.first_batches(epoch))

    def first_batches(self, epoch: int) -> Iterator[Batch]:
        """The epoch's first training batches, at most 20, on the device."""
        self._stream = None  # workers serve one stream at a time
        count = min(STATISTICS_BATCHES, self.len_epoch)
        stream = self.data_loader.batches((epoch - 1) * self.len_epoch)
        return map(self.engine.to_device, islice(stream, count))

    def _rest_of_epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches not trained yet, on the device; while one is awaited, the state is whole."""
        # One stream for all epochs: workers prepare the next batches while the validation runs.
        if self._stream is None:
            self._stream = self.data_loader.batches((epoch - 1) * self.len_epoch + self.step)
        while self.step < self.len_epoch:
            # at step 0 the state is the last epoch's, and would be taken for all of this one
            self.is_whole = self.step > 0 and self.step % self.grad_accum_steps == 0
            batch = self.engine.to_device(next(self._stream))
            self.is_whole = False
            yield batch

    def _accumulation(self) -> tuple[int, bool]:
        """How many batches share the next batch's optimizer step, and whether it is their last."""
        place = self.step % self.grad_accum_steps
        batches = min(self.grad_accum_steps, self.len_epoch - self.step + place)
        return batches, place + 1 == batches

    def train_steps(self, model: Running, batch: Batch) -> Iterator[Step]:
        """The task's steps for a batch, which is transformed first.

        A class number that was mixed with another one's counts, for the metrics, as the larger.
        """
        labels, log = batch[-1] if isinstance(batch, list | tuple) else None, {}
        for transform in self.batch_transforms:
            name = type(transform).__name__
            with explained(f"trainer.batch_transforms: {name} does not fit the batch"):
                batch = transform(batch)
        is_mixed = self.batch_transforms and isinstance(labels, Tensor) and labels.ndim == 1
        for step in self.task.train_steps(model, batch):
            check_kind(step, type(self.task).__name__)
            if is_mixed:
                step.target = step.target.argmax(1)
            log |= step.log
            step.log = log  # of all the batch's steps
            yield step

    def _optimizer_step(self, name: str) -> None:
        optimizer = self.all_optimizers[name]
        self.engine.unscale(optimizer)
        self.after_backward()
        self.engine.optimizer_step(optimizer, self.clip_grad_norm)
        for other in self.all_optimizers.values() if self.optimizers else ():
            other.zero_grad(set_to_none=True)  # its networks may have got gradients on the way
        for schedule in self.all_schedules:
            if schedule.optimizer == name:
                schedule.after_step()

    def _after_step(self) -> None:
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        self.between_steps()

    def recent_loss(self) -> float:
        return self.meters.recent_loss()

    def recent_batches(self) -> range:
        batches = super().recent_batches()
        end = self.step or self.len_epoch  # 0: a subclass's own _train_epoch counts none
        return batches[max(0, self.step - self.log_interval) : end]

    def _bar(self, epoch: int) -> tqdm:
        hidden = self.verbosity < 2 or not distributed.is_main() or None
        title = f"epoch {epoch}/{self.epochs}"
        return progress(desc=title, total=self.len_epoch, initial=self.step, disable=hidden)

    def _log_progress(self, epoch: int, bar: tqdm, data: object) -> None:
        loss = self.meters.recent_loss()
        self.fail_unless_finite("loss", loss)
        bar.set_postfix(loss=f"{loss:.4g}")
        if bar.disable and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.logger.debug(f"epoch {epoch}  batch {self.step}/{self.len_epoch}  loss {loss:.4g}")
        self.writer.set_step((epoch - 1) * self.len_epoch + self.step)
        self.writer.add_scalar("loss", loss)
        is_first = epoch == 1 and self.step == min(self.log_interval, self.len_epoch)
        if is_first and isinstance(data, Tensor):
            self.writer.add_input_images(data)

    def _until_stopped(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        batches = iter(loader)
        # All processes check equally often, even one that has no share of the last batch.
        for _ in range(len(loader)):
            self.signals.check()
            yield from islice(batches, 1)

    def rehearse(self) -> Call:
        """Log the layers, and try a training step and an evaluation; see `trainer.rehearsal`.

        Returns the arguments of the network. Raises UserError if network, loss, metrics and data do
        not fit each other.
        """
        if self.config.continued:
            self._check_resumable(checkpoint.load(self.config.resume))
        network, settings = unwrap(self.model), (self.task, self.metrics, self.engine)
        step, tried = rehearse(network, self.data_loader, *settings, self.train_steps)
        self._check_optimizers(tried.optimizers)
        logged, valid = tried.logged, self.valid_data_loader
        if isinstance(valid, BaseDataLoader):
            _, validated = rehearse(network, valid, *settings)
            costs = ["escape", "overkill"] if self.config.get("inspection") else []
            logged = [*logged, *(f"val_{name}" for name in [*validated.logged, *costs])]
        own = (getattr(getattr(self, name), "__func__", None) for name in LOGGING)
        is_known = list(own) == [getattr(Trainer, name) for name in LOGGING]
        if is_known and (valid is None or isinstance(valid, BaseDataLoader)):
            self.monitor.check(logged)
        own_loaders = [x for x in (self.data_loader, valid) if isinstance(x, BaseDataLoader)]
        choose_workers(network, own_loaders, self.task, self.engine, self.train_steps)
        if tried.inputs:  # the task may call only parts of the network
            args, kwargs = map_tensors(tried.inputs[0], lambda tensor: tensor[:2])
            rows = summary(network, *args, **kwargs)
            self.logger.debug("\n".join([type(network).__name__, *aligned(rows)]))
        self.logger.debug(f"task: {type(self.task).__name__}")
        for line in tried.doubts:
            self.logger.warning(line)
        if (name := self.config.option("inspection", "target")) is not None:
            numbers = [str(number) for number in range(step.output.shape[-1])]
            self.target_number = class_number(name, self.data_loader.classes or numbers)
            self._foretell(name)
        return tried.inputs[0] if tried.inputs else ((), {})

    def _foretell(self, target: str) -> None:
        """Say before the training what its validation data can show of the target class."""
        loader = self.valid_data_loader
        labels = known_labels(loader) if isinstance(loader, BaseDataLoader) else None
        if labels is None:
            return
        count, settings = int((labels == self.target_number).sum()), self.config["inspection"]
        if count:
            self.logger.info(outlook(target, count, len(labels) - count, settings))
        if sentence := too_few(target, count, settings):
            self.logger.warning(sentence)

    def _check_optimizers(self, used: list[str]) -> None:
        name = type(self.task).__name__
        for section in set(used) - self.all_optimizers.keys():
            raise UserError(
                f'task: {name} wants a step of "{section}", and the config has no such section '
                'with "role": "optimizer"'
            )
        for section in self.all_optimizers.keys() - set(used):
            raise UserError(f"{section}: {name} takes no step with it")
        if len(used) > 1 and self.grad_accum_steps > 1:
            raise UserError("trainer.grad_accum_steps: only with one optimizer")

    def _store_features(self) -> None:
        """From now on, train the head on stored features, if that changes nothing."""
        network, option = unwrap(self.model), partial(self.config.option, "arch")
        is_pair = type(self.task) in (SupervisedTask, AuxiliaryHeadsTask, LossTask)
        if is_pair and option("freeze") == "backbone" and option("unfreeze_at") is None:
            # rounding may differ between devices, and all processes must do the same
            found = distributed.all_gather(reusable_tail(network, self.data_loader, self.engine))
            self.tail = found[0] if len(set(found)) == 1 else None
        self.reuse_features = self.tail is not None
        if self.tail is None:
            return
        self.logger.info("the backbone is frozen, nothing is random: features are computed once")
        self.data_loader, self.valid_data_loader = (
            loader and with_features(network, self.tail, loader, self.engine)
            for loader in (self.data_loader, self.valid_data_loader)
        )
        self.model = self.engine.prepare(Tail(network, self.tail))

    @property
    def evaluated_model(self) -> nn.Module:
        model = super().evaluated_model
        return model if self.tail is None or model is self.model else Tail(model, self.tail)

    def state_dict(self) -> dict:
        state = super().state_dict()
        state["trainer"]["meters"] = self.meters.state_dict() if self.step else None
        state["trainer"]["running_statistics"] = self.running_statistics
        return state

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._stream = None
        self.running_statistics = state["trainer"].get("running_statistics", {})
        self.meters = Meters(self.metrics, self.engine.device, self.data_loader.classes)
        if counts := state["trainer"].get("meters"):
            self.meters.load_state_dict(counts)
