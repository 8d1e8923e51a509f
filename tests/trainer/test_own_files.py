"""Files as users write them, for tasks that are not a pair and a label: trained, resumed, tested.

Each file is as long as it must be, and no longer than the number beside it.
"""

import json

import pytest
import torch

import test as test_script
from tests.conftest import assert_same, last_checkpoint

FILES = {
    "another loss that sees the input": (8, """
from trainer.tasks import SupervisedTask


class Weighted(SupervisedTask):
    def step(self, model, batch):
        step = super().step(model, batch)
        step.loss = step.loss * (1 + batch[0].mean().abs())
        return step
"""),
    "gradient penalty": (15, """
import torch
from trainer.tasks import SupervisedTask


class Penalty(SupervisedTask):
    def step(self, model, batch):
        data = batch[0].clone().requires_grad_()
        with torch.enable_grad():
            step = super().step(model, (data, batch[1]))
            [gradient] = torch.autograd.grad(step.output.sum(), data, create_graph=True)
        step.loss = step.loss + 0.01 * gradient.square().sum((1, 2, 3)).mean()
        return step
"""),
    "VAE": (30, """
import torch
import torch.nn.functional as F
from base import BaseModel, BaseTask
from base.base_task import Step


class VAE(BaseModel):
    def __init__(self, code: int = 8):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(784, 2 * code), torch.nn.Linear(code, 784)

    def forward(self, images):
        mean, log_var = self.encoder(images.flatten(1)).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (log_var / 2).exp() if self.training else mean
        return self.decoder(code).view_as(images), mean, log_var


class VAETask(BaseTask):
    def step(self, model, batch):
        images = batch[0]
        output, mean, log_var = model(images)
        kl = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum(1).mean()
        error = F.mse_loss(output, images, reduction="none").sum((1, 2, 3)).mean()
        return Step(error + kl, output, images, len(images), images, {"kl": kl})
"""),
    "siamese": (25, """
import torch
from torch import nn
from base import BaseModel, BaseTask
from base.base_task import Step


class Embedding(BaseModel):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, images):
        return nn.functional.normalize(self.layers(images))


class ContrastiveTask(BaseTask):
    def step(self, model, batch):
        images, labels = batch
        output = model(images)
        distance, same = (output - output.roll(1, 0)).norm(dim=1), labels == labels.roll(1)
        loss = torch.where(same, distance**2, (1 - distance).clamp(min=0) ** 2).mean()
        return Step(loss, output, labels, len(labels), images, {"same": same.float().mean()})
"""),
    "GAN": (45, """
import torch
import torch.nn.functional as F
from torch import nn
from base import BaseModel, BaseTask
from base.base_task import Step


class Generator(BaseModel):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 784))

    def forward(self, noise):
        return self.layers(noise).view(-1, 1, 28, 28)


class Critic(BaseModel):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, images):
        return self.layers(images)


class WassersteinTask(BaseTask):
    def __init__(self, critic, criterion=None):
        super().__init__(criterion)
        self.critic = critic

    def train_steps(self, model, batch):
        real = batch[0]
        fake = model(torch.randn(len(real), 8, device=real.device))
        loss = self.critic(fake.detach()).mean() - self.critic(real).mean()
        yield Step(loss, fake, None, len(real), optimizer="optimizer_c", log={"critic": loss})
        yield Step(-self.critic(fake).mean(), fake, None, len(real))

    def step(self, model, batch):
        return list(self.train_steps(model, batch))[-1]
"""),
}  # fmt: skip
OWN_GAN = {
    "arch": "own.Generator",
    "task": "own.WassersteinTask",
    "critic": {"role": "arch", "type": "own.Critic"},
    "optimizer_c": {"role": "optimizer", "network": "critic", "type": "RMSprop"},
    "loss": None,
    "metrics": [],
}
CONFIGS = {
    "another loss that sees the input": {"task": "own.Weighted"},
    "gradient penalty": {"task": "own.Penalty"},
    "VAE": {"arch": "own.VAE", "task": "own.VAETask", "loss": None, "metrics": []},
    "siamese": {"arch": "own.Embedding", "task": "own.ContrastiveTask", "loss": None,
                "metrics": []},
    "GAN": OWN_GAN,
    "mixing": {"trainer.batch_transforms": [{"type": "MixUp", "args": {"alpha": 0.4}}, "CutMix"],
               "loss": {"type": "cross_entropy", "args": {"label_smoothing": 0.1}}},
    "a second schedule": {
        "warm_up": {"role": "lr_scheduler", "type": "LinearLR", "interval": "step",
                    "args": {"start_factor": 0.1, "total_iters": 20}}},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_trained_resumed_and_tested(digits, train, resume, own_code, name):
    length, text = FILES.get(name, (0, ""))
    assert len([line for line in text.splitlines() if line.strip()]) <= length
    own_code("own", text)
    config = digits({**CONFIGS[name], "trainer.epochs": 3})
    whole, cut = train(config), train(config, "--epochs", 1)
    resume(cut, "--epochs", 3)
    one, two = last_checkpoint(whole), last_checkpoint(cut)
    for key in ("state_dict", "optimizer", "kept", "lr_scheduler", "rng", "monitor_best"):
        assert_same(one[key], two[key], key)
    assert test_script.main(["-r", str(whole), "--split", "val"]) == 0
    tested = json.loads((whole / "test" / "result_val.json").read_text())
    best = torch.load(whole / "model_best.pth", weights_only=True)["monitor_best"]
    assert tested["loss"] == pytest.approx(best, rel=1e-4)


MISTAKES = [
    ("VAE", ("images = batch[0]", "images = batch[0][:, :, 1:]"), "VAE cannot take"),
    ("VAE", ("return Step(error + kl", "return Step(None"), "loss: should give one number"),
    ("VAE", ("output, mean, log_var = model(images)", "output, mean = model(images)"), "VAETask"),
    ("VAE", ("images = batch[0]", 'images = batch["image"]'), "VAETask does not fit"),
    ("VAE", ("return Step(error", "return (error"), "VAETask.step gives"),
    ("VAE", ('{"kl": kl}', '{"kl": "much"}'), "VAETask logs what are not numbers"),
    ("siamese", ("labels == labels.roll(1)", "labels == labels[1:]"), "ContrastiveTask"),
    ("GAN", ('optimizer="optimizer_c"', 'optimizer="optimizer_d"'), '"optimizer_d"'),
    ("GAN", ("self.critic = critic", "self.judge = critic"), "stores no network as self.critic"),
    ("GAN", ("step(self", "stop(self"), "must still define step"),
    ("GAN", ("def __init__(self, critic, ", "def __init__(self, critics, "), 'needs "critics"'),
    ("gradient penalty", ("(data, batch[1])", "(data,)"), "needs pairs"),
]


@pytest.mark.parametrize(("name", "change", "message"), MISTAKES)
def test_a_mistake_is_a_sentence_before_the_first_epoch(
    digits, train, own_code, capsys, name, change, message
):
    text = FILES[name][1]
    assert change[0] in text
    own_code("own", text.replace(*change))
    train(digits(dict(CONFIGS[name])), code=2)
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert "epoch 1" not in printed.out
