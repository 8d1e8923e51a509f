"""The training loop without anything around it: a place to start from with a loop of your own."""

from itertools import islice

import torch

from base import BaseTrainer
from model.freezing import set_training_mode
from trainer.evaluate import Meters
from trainer.rehearsal import rehearse
from trainer.workers import choose_workers
from utils.engine.engine import Running, unwrap, unwrap_ddp
from utils.errors import UserError


class PlainTrainer(BaseTrainer):
    """Each step of training and validation, in the order in which it happens.

    It trains the same weights as `Trainer`, which can also accumulate and clip gradients, stop and
    resume within an epoch, and more. Copy this file to change the loop itself.
    """

    def train(self) -> dict[str, float]:
        if self.optimizers:
            raise UserError("trainer.type: PlainTrainer has one optimizer; Trainer takes several")
        # An error in network, loss or metrics shows now, with an explanation, and not in epoch 1.
        settings = (self.task, self.metrics, self.engine)
        rehearse(unwrap(self.model), self.data_loader, *settings, self.task.train_steps)
        loaders, steps = [self.data_loader], self.task.train_steps
        choose_workers(unwrap(self.model), loaders, self.task, self.engine, steps)
        return super().train()

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        set_training_mode(self.model)  # dropout on; what is frozen stays in evaluation mode
        model = Running(self.engine, self.model)  # computes in the config's precision
        meters = Meters(self.metrics, self.engine.device, self.data_loader.classes)

        # Batches are numbered from the start of the run, and a number always means the same batch:
        # a resumed run continues with the right one.
        first = (epoch - 1) * self.len_epoch
        batches = islice(self.data_loader.batches(first), self.len_epoch)
        for number, batch in enumerate(batches, start=first):
            batch = self.engine.to_device(batch)
            step = self.task.step(model, batch)  # forward pass and loss

            # 1, but for several processes whose shares of the batch differ in size
            weight = self.data_loader.batch_weight(number)
            self.engine.backward(step.loss, weight)  # adds to each parameter's .grad
            self.engine.optimizer_step(self.optimizer)  # changes the weights, clears the gradients
            self.schedule.after_step()  # a learning rate that changes with each step
            if self.ema is not None:
                self.ema.update_parameters(self.model)  # the moving average of the weights

            if weight > 0:
                meters.update(step)  # stays on the device: nothing waits here
            if (number + 1) % 50 == 0:
                self.writer.set_step(number + 1)
                self.writer.add_scalar("loss", meters.recent_loss())
        return meters.result()  # "loss" and the metrics: means over the epoch

    @torch.no_grad()
    def _valid_epoch(self, epoch: int) -> dict[str, float]:
        if self.valid_data_loader is None:
            return {}
        network = unwrap_ddp(self.evaluated_model)  # the moving average, if there is one
        network.eval()
        model = Running(self.engine, network)
        meters = Meters(self.metrics, self.engine.device, self.data_loader.classes)
        for batch in self.valid_data_loader:
            meters.update(self.task.step(model, self.engine.to_device(batch)))
        return meters.result()  # logged as val_loss, val_accuracy, ...
