"""A test takes what a task needs from the checkpoint, and not more."""

import test as test_script
from tests.conftest import last_checkpoint
from tests.trainer.test_distillation import distilled
from tests.trainer.test_gan import gan as gan_config
from utils import checkpoint


def test_a_test_judges_by_the_trained_discriminator(digits, train, capsys):
    run = train(digits(gan_config()))
    assert test_script.main(["-r", str(run), "--split", "val"]) == 0
    output = capsys.readouterr().out
    best = checkpoint.load(run / "model_best.pth")["monitor_best"]
    assert f"loss_d              {best:.4f}" in output


def test_teacher_is_not_needed_later_and_not_in_the_checkpoint(digits, train, tmp_path):
    teacher = train(digits())
    run = train(digits(distilled(teacher / "model_best.pth"), name="Student"))
    assert last_checkpoint(run)["kept"] == {"parts": {}, "values": {}}
    teacher.rename(tmp_path / "gone")
    assert test_script.main(["-r", str(run), "--split", "val"]) == 0


OWN = """
import torch
from torch import nn
from base import BaseTask
from base.base_task import Step

class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    def forward(self, batch):
        return self.layers(batch["images"])

class Embed(BaseTask):
    classifies = False
    def step(self, model, batch):
        images, labels = batch
        output = model({"images": images})
        return Step(output.square().mean(), output, labels, len(labels), images)

class Classify(Embed):
    classifies = True
"""


def test_an_embedding_is_not_reported_as_a_classifier(digits, train, own_code):
    own_code("own", OWN)
    config = digits({"arch": "own.Embedding", "task": "own.Embed", "metrics": []})
    run = train(config)
    assert test_script.main(["-r", str(run), "--split", "val"]) == 0
    assert [path.name for path in (run / "test").iterdir()] == ["result_val.json"]


def test_a_network_that_does_not_take_images_alone_has_no_heat_maps(
    digits, train, own_code, capsys
):
    own_code("own", OWN)
    run = train(digits({"arch": "own.Embedding", "task": "own.Classify", "metrics": []}))
    assert test_script.main(["-r", str(run), "--split", "val"]) == 0
    assert "no heat maps" in "".join(capsys.readouterr())
