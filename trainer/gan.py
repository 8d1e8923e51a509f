from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from base import BaseTask
from base.base_task import Model, Step
from base.samples import Batch
from utils.config.hints import PositiveInt


class GanTask(BaseTask):
    """A generator, the model, learns to deceive a discriminator (Goodfellow et al.,
    arXiv:1406.2661).

    The config has sections "discriminator" of the role "arch", whose network gives one logit for an
    image, and "optimizer_d" of the role "optimizer". Batches begin with images, (N, C, H, W).

    Args:
        discriminator: gives a logit for each image
        noise: numbers that an image is made from
    """

    def __init__(
        self, discriminator: Model, noise: PositiveInt = 64, criterion: Callable | None = None
    ):
        super().__init__(criterion)
        self.discriminator, self.noise = discriminator, noise

    def train_steps(self, model: Model, batch: Batch) -> Iterator[Step]:
        real = batch[0]
        fake = model(torch.randn(len(real), self.noise, device=real.device))
        loss_d = self.judge(real, 1.0) + self.judge(fake.detach(), 0.0)
        yield Step(loss_d, fake, None, len(real), real, {"loss_d": loss_d}, "optimizer_d")
        yield Step(self.judge(fake, 1.0), fake, None, len(real), real)

    def step(self, model: Model, batch: Batch) -> Step:
        discriminator_step, generator_step = self.train_steps(model, batch)
        generator_step.log = discriminator_step.log
        return generator_step

    def judge(self, images: Tensor, truth: float) -> Tensor:
        """The discriminator's loss where `truth` is right: 1 for real images, 0 for made ones."""
        logits = self.discriminator(images).flatten()
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth))

    def images(self, step: Step) -> Tensor:
        """What the generator makes of noise."""
        low, high = step.output.aminmax()
        scaled = (step.output - low) / (high - low).clamp(min=1e-6)
        return scaled.expand(-1, 3, -1, -1)
