"""Files as users write them, for tasks that are not a pair and a label: trained, resumed, tested.

Each has no more lines, imports not counted, than the number beside it says.
"""

import json

import pytest
import torch

import export as export_script
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
        if not torch.is_grad_enabled():
            return super().step(model, batch)
        data = batch[0].clone().requires_grad_()
        step = super().step(model, (data, batch[1]))
        [gradient] = torch.autograd.grad(step.output.sum(), data, create_graph=True)
        step.loss = step.loss + 0.01 * gradient.square().sum((1, 2, 3)).mean()
        return step
"""),
    "two inputs": (
        15,
        """
import torch
from torch import nn
from base import BaseModel
from trainer.tasks import SupervisedTask


class TwoHalves(BaseModel):
    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.side, self.head = nn.Linear(392, 16), nn.Linear(32, num_classes)

    def forward(self, left, right):
        return self.head(torch.cat([self.side(x.flatten(1)).relu() for x in (left, right)], 1))


class HalvesTask(SupervisedTask):
    def step(self, model, batch):
        return super().step(model, (batch[0].chunk(2, dim=3), batch[1]))
""",
    ),
    "an output that is a dataclass": (
        15,
        """
from dataclasses import dataclass
import torch
from torch import nn
from base import BaseModel, BaseTask
from base.base_task import Step


@dataclass
class Answer:
    logits: torch.Tensor
    embedding: torch.Tensor


class Embedding(BaseModel):
    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.embed, self.head = nn.Linear(784, 16), nn.Linear(16, num_classes)

    def forward(self, images):
        embedding = self.embed(images.flatten(1)).relu()
        return Answer(self.head(embedding), embedding)


class AnswerTask(BaseTask):
    def step(self, model, batch):
        answer, target = model(batch[0]), batch[1]
        return Step(self.criterion(answer.logits, target), answer.logits, target, len(target))
""",
    ),
    "ragged text": (
        20,
        """
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from base import BaseDataLoader, BaseModel


class WordsDataLoader(BaseDataLoader):
    def build_dataset(self, subset, augment):
        words = "a bb ccc dddd eeeee ffffff ggggggg xx yyyy zzzzzz".split() * 5
        return [(torch.tensor(list(word.encode())), len(word) % 2) for word in words]

    def collate_fn(self, samples):
        words, targets = zip(*samples)
        return pad_sequence(words, batch_first=True), torch.tensor(targets)


class LetterMean(BaseModel):
    def __init__(self):
        super().__init__()
        self.letters, self.head = nn.Embedding(256, 8), nn.Linear(8, 2)

    def forward(self, words):
        mask = (words > 0)[:, :, None]
        return self.head((self.letters(words) * mask).sum(1) / mask.sum(1))
""",
    ),
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
    "two inputs": {"arch": "own.TwoHalves", "task": "own.HalvesTask"},
    "an output that is a dataclass": {"arch": "own.Embedding", "task": "own.AnswerTask"},
    "ragged text": {"arch": "own.LetterMean", "data_loader.type": "own.WordsDataLoader",
                    "data_loader.args": {"batch_size": 10, "validation_split": 0.2},
                    "metrics": ["accuracy"]},
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
    lines = [line for line in text.splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith(("import", "from"))]) <= length
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
    assert export_script.main(["-r", str(whole), "-s", "exporter.args.opset=17"]) == 0
    assert json.loads((whole / "export.json").read_text())["proof"]["passed"]


MISTAKES = [
    ("VAE", ("images = batch[0]", "images = batch[0][:, :, 1:]"), "VAE cannot take"),
    ("VAE", ("return Step(error + kl", "return Step(None"), "should be a tensor, not a NoneType"),
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


def test_a_task_that_needs_gradients_has_no_proof(digits, train, own_code, capsys):
    text = FILES["gradient penalty"][1].replace("if not torch.is_grad_enabled()", "if False")
    text = text.replace("torch.autograd.grad(step.output.sum()", "grad(step.output.sum()")
    own_code("own", text.replace("import torch", "import torch\ngrad = torch.autograd.grad"))
    config = digits({"task": "own.Penalty", "trainer.epochs": 1})
    train(config, code=2)
    assert "task: Penalty does not fit the first batch" in capsys.readouterr().err
