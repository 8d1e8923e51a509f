"""Sequences of different lengths: a loader's own collate_fn, from training to the test."""

import json

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import assert_same, last_checkpoint
from utils import checkpoint

RAGGED = """
from dataclasses import dataclass
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from base import BaseDataLoader, BaseTask
from base.base_task import Step


@dataclass
class Words:
    letters: torch.Tensor
    mask: torch.Tensor
    target: torch.Tensor


class Words30(torch.utils.data.Dataset):
    def __init__(self, augment):
        self.augment = augment

    def __len__(self):
        return 30

    def __getitem__(self, index):
        letters = torch.arange(1, 2 + index % 5) + index % 3
        noise = torch.randint(0, 2, (1,)) if self.augment else 0
        return letters + noise, index % 3


class RaggedDataLoader(BaseDataLoader):
    def build_dataset(self, subset, augment):
        return Words30(augment)

    def collate_fn(self, samples):
        letters, targets = zip(*samples)
        padded = pad_sequence(letters, batch_first=True)
        return Words(padded, padded > 0, torch.tensor(targets))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.letters, self.head = nn.Embedding(10, 8), nn.Linear(8, 3)

    def forward(self, letters, mask):
        mean = (self.letters(letters) * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return self.head(mean)


class RaggedTask(BaseTask):
    def step(self, model, batch):
        output = model(batch.letters, batch.mask)
        loss = self.criterion(output, batch.target)
        return Step(loss, output, batch.target, len(batch.target))
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_ragged_run_resumes_exactly_and_is_tested(digits, own_code, train, resume, workers):
    import test

    own_code("ragged", RAGGED)
    config = digits({"trainer.epochs": 3, "metrics": ["accuracy"], "arch": "ragged.Network"})
    config["task"] = {"type": "ragged.RaggedTask"}
    arguments = {"batch_size": 4, "validation_split": 5}
    config["data_loader"] = {"type": "ragged.RaggedDataLoader", "args": arguments}
    unbroken = train(config)
    resumed = train(config, "--epochs", 1)
    resume(resumed, "--epochs", 3, "-s", f"data_loader.args.num_workers={workers}")
    one, two = last_checkpoint(unbroken), last_checkpoint(resumed)
    for part in ("state_dict", "optimizer", "lr_scheduler", "monitor_best"):
        assert_same(one[part], two[part])

    assert test.main(["-r", str(unbroken), "-d", "cpu"]) == 0
    result = json.loads((unbroken / "test" / "result.json").read_text())
    import ragged

    network = ragged.Network()
    network.load_state_dict(checkpoint.load(unbroken / "model_best.pth")["state_dict"])
    samples = [ragged.Words30(augment=False)[index] for index in range(30)]
    outputs = [network(letters[None], letters[None] > 0) for letters, _ in samples]
    loss = F.cross_entropy(torch.cat(outputs), torch.tensor([target for _, target in samples]))
    assert result["loss"] == pytest.approx(loss.item(), rel=1e-5)
