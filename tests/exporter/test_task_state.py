"""A file does not hold what a task stores, and says so when it is tested."""

import export as export_script
import test as test_script

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

class Centered(BaseTask):
    def __init__(self, criterion):
        super().__init__(criterion)
        self.center = torch.zeros(10)
    def step(self, model, batch):
        output = model({"images": batch[0]})
        if torch.is_grad_enabled():
            self.center = self.center + output.detach().mean(0)
        return Step((output - self.center).square().mean(), output, None, len(output))
"""


def test_a_file_without_the_state_of_the_task_says_so(digits, train, own_code, capsys):
    own_code("own", OWN)
    run = train(digits({"arch": "own.Embedding", "task": "own.Centered", "metrics": []}))
    assert export_script.main(["-r", str(run), "-s", "exporter.args.opset=17"]) == 0
    capsys.readouterr()
    assert test_script.main(["-r", str(run / "model.onnx"), "--split", "val"]) == 0
    assert "does not hold task.center of the task" in "".join(capsys.readouterr())
