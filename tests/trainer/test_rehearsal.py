"""What config, data and network tell only together is found before the first epoch."""

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics import Recall

from tests.conftest import assert_same, build
from trainer.rehearsal import rehearse
from utils.errors import UserError

LOADER = """
import torch
from torch.utils.data import TensorDataset
from base import BaseDataLoader

class Numbers(BaseDataLoader):
    "40 vectors; the labels of the later ones begin at `first`."
    def __init__(self, first: int = 0, names: bool = False, count: int = 40, **kwargs):
        self.first, self.names, self.count = first, names, count
        super().__init__(**kwargs)
    def build_dataset(self, subset, augment):
        generator = torch.Generator().manual_seed(1)
        labels = torch.arange(self.count) % 3
        labels[20:] = labels[20:] + self.first if self.first > -100 else self.first
        data = TensorDataset(torch.randn(self.count, 6, generator=generator), labels)
        if self.names:
            data.classes = ["a", "b", "c"]
        return data

class Unlabelled(Numbers):
    def build_dataset(self, subset, augment):
        return TensorDataset(super().build_dataset(subset, augment).tensors[0])

class Amounts(Numbers):
    "A number for each vector, instead of a label."
    def build_dataset(self, subset, augment):
        vectors = super().build_dataset(subset, augment).tensors[0]
        return TensorDataset(vectors, vectors.mean(1))

class Rare(Numbers):
    "A label without an output, late, in a dataset that does not tell its labels."
    def build_dataset(self, subset, augment):
        vectors, labels = super().build_dataset(subset, augment).tensors
        labels[-1] = 3
        return [(x, int(y)) for x, y in zip(vectors, labels)]

class Dictionaries(Numbers):
    def build_dataset(self, subset, augment):
        return [{"input": x, "target": y} for x, y in super().build_dataset(subset, augment)]
"""
NETS = """
import torch
from torch import nn
def normed(outputs=3):
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs))
class Squeezing(nn.Module):
    "Forgets the batch axis of one sample."
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)
    def forward(self, x):
        return self.layer(x).squeeze()
class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)
    def forward(self, x):
        return {}["nothing"] if self.training else self.layer(x)
class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)
    def forward(self, x):
        return self.layer(x).detach()
"""
MORE_NETS = """
import torch
from torch import nn
class Probabilities(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)
    def forward(self, x):
        return self.layer(x).softmax(1)
class Dictionary(Probabilities):
    def forward(self, x):
        return {"logits": self.layer(x)}
class Column(Probabilities):
    def forward(self, x):
        return self.layer(x)[:, :1]
"""
METRICS = """
import numpy as np
def array(output, target):
    return np.zeros(3)
def nothing(output, target):
    return None
def each(output, target):
    return (output.argmax(1) == target).float()
"""


@pytest.fixture
def vectors(digits, own_code):
    """A function that gives the configuration of a small network for vectors of six numbers."""
    own_code("vector_data", LOADER)
    own_code("nets", NETS)
    own_code("more_nets", MORE_NETS)
    own_code("measures", METRICS)

    def make(changes=None):
        return digits(
            {
                "arch": "nets.normed",
                "data_loader": {"type": "vector_data.Numbers", "args": {"batch_size": 8}},
                "metrics": ["accuracy"],
                "lr_scheduler": None,
                "trainer.monitor": "off",
                **(changes or {}),
            }
        )

    return make


ARGS = "data_loader.args."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({ARGS + "first": 1}, "the labels of train are 0 to 3, but the network gives 3 outputs"),
        ({ARGS + "first": -1}, "the labels of train are -1 to 2"),
        ({ARGS + "first": 1, ARGS + "batch_size": 4}, "labels of train are 0 to 3"),
        ({ARGS + "names": True, "arch": {"type": "nets.normed", "args": {"outputs": 4}}},
         "the network gives 4 outputs, but there are 3 classes (a, b, c)"),
        ({ARGS + "count": 41},
         "cannot take the last batch (1x6 float32, 1 int64) in training: Expected more than 1"),
        ({"arch": "nets.Squeezing", ARGS + "count": 41}, "the last batch (1x6 float32, 1 int64)"),
        ({"arch": "nets.Squeezing", ARGS + "validation_split": 9},
         "accuracy does not fit the output (3 float32) and the targets (1 int64)"),
        ({"arch": "nets.Broken"}, "Broken cannot take the first batch (8x6"),
        ({"arch": "nets.Detached"}, "its gradients cannot be computed"),
        ({"loss": "mse_loss", "arch": "more_nets.Column", "data_loader.type": "vector_data.Amounts",
          "metrics": []}, "the network's output is 8x1 float32 and the targets are 8 float32"),
        ({"loss": "poisson_nll_loss", ARGS + "batch_size": 3}, "compares number by number"),
        ({"loss": "HuberLoss", ARGS + "batch_size": 3}, "compares number by number"),
        ({"loss": "nll_loss"}, "takes the logarithms of probabilities"),
        ({"arch": "more_nets.Dictionary"}, "takes one tensor from the network, not {"),
        ({"loss": "BCEWithLogitsLoss"}, "compares number by number"),
        ({"loss": {"type": "cross_entropy", "args": {"reduction": "none"}}},
         "loss: should give one number"),
        ({"metrics": ["accuracy", "measures.array"]}, "array does not fit"),
        ({"metrics": ["measures.nothing"]}, "nothing does not fit"),
        ({"metrics": ["measures.each"]}, "each does not fit"),
        ({"metrics": [{"type": "ConfusionMatrix",
                       "args": {"task": "multiclass", "num_classes": 3}}]},
         "ConfusionMatrix should give one number, or one for each class"),
        ({ARGS + "names": True, "metrics": [{"type": "ROC", "args": {"task": "multiclass",
                                                                     "num_classes": 3}}]},
         "ROC should give one number"),
        ({ARGS + "names": True, "inspection": {"target": "NG"}},
         'inspection.target: "NG" is not one of the classes a, b, c'),
    ],
)  # fmt: skip
def test_faults_are_sentences_before_training(vectors, train, capsys, changes, message, tmp_path):
    for flags in ([], ["--check"], ["--profile", 2]):
        train(vectors(changes), *flags, code=2)
        error = capsys.readouterr().err
        assert message in error, flags
        assert "Traceback" not in error
    assert not list((tmp_path / "saved").rglob("*.pth"))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({ARGS + "count": 41, ARGS + "drop_last": True}, 0),
        ({ARGS + "count": 42}, 0),
        ({ARGS + "first": -100}, 0),  # torch's cross entropy leaves such labels out
    ],
)
def test_what_can_be_trained_is_not_refused(vectors, train, changes, code):
    train(vectors({**changes, "metrics": []}), code=code)


def test_a_metric_per_class_is_logged_by_name(vectors, train):
    recall = {"type": "Recall", "args": {"task": "multiclass", "num_classes": 3, "average": "none"}}
    changes = {ARGS + "names": True, ARGS + "validation_split": 10, "metrics": [recall]}
    run = train(vectors(changes | {"trainer.monitor": "max val_Recall_b"}))
    table = (run.parents[2] / "log" / run.parent.name / run.name / "metrics.csv").read_text()
    assert {"Recall_a", "Recall_b", "val_Recall_c"} <= set(table.splitlines()[0].split(","))
    trainer = build(vectors(changes))
    expected = Recall(task="multiclass", num_classes=3, average="none")
    log = trainer._valid_epoch(1)
    trainer.model.eval()
    for data, target in trainer.valid_data_loader:
        expected.update(trainer.model(data), target)
    logged = [log[f"Recall_{name}"] for name in "abc"]
    np.testing.assert_allclose(logged, expected.compute().numpy())


def test_rehearsal_changes_nothing(vectors):
    changes = {ARGS + "count": 42, "arch": "nets.normed"}
    trainer, untouched = build(vectors(changes)), build(vectors(changes))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    trainer.rehearse()
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(trainer.model.state_dict(), untouched.model.state_dict())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert [m.training for m in trainer.model.modules()] == [
        m.training for m in untouched.model.modules()
    ]


def test_rehearsal_sees_the_size_of_the_last_batch(vectors):
    trainer, sizes = build(vectors({ARGS + "count": 43})), []

    class Watching(nn.Linear):
        def forward(self, x):
            sizes.append((len(x), self.training))
            return super().forward(x)

    arguments = trainer.data_loader, trainer.task, {}, trainer.engine
    rehearse(Watching(6, 3), *arguments, arguments[1].train_steps)
    rehearse(Watching(6, 3), *arguments)
    assert sizes == [(8, True), (3, True), (8, False), (3, False)]


def test_batches_of_another_kind_are_refused(vectors):
    for name in ("Unlabelled", "Dictionaries"):
        trainer = build(vectors({"data_loader.type": f"vector_data.{name}"}))
        with pytest.raises(UserError, match="pairs"):
            trainer.rehearse()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "more_nets.Probabilities"}, "leave the softmax out of the network"),
        ({"arch": "more_nets.Probabilities", "loss": "nll_loss"}, None),
        ({}, "softmax"),
        ({ARGS + "validation_split": 8, "trainer.monitor": "min val_accuracy"},
         '"max val_accuracy"?'),
        ({"trainer.monitor": "max loss"}, '"min loss"?'),
        ({"lr_scheduler": {"type": "PolynomialLR", "args": {"total_iters": 1}}}, "ends after 1 of"),
    ],
)  # fmt: skip
def test_what_is_probably_not_meant_is_said_in_check_too(vectors, train, capsys, changes, message):
    code = 2 if message is None else 0
    train(vectors(changes), "--check", code=code)
    output = "".join(capsys.readouterr())
    assert ((message or "logarithms") in output) == (bool(changes))


def test_a_label_that_no_one_could_know_ends_the_run_in_a_sentence(vectors, train, capsys):
    changes = {"data_loader.type": "vector_data.Rare", ARGS + "shuffle": False}
    train(vectors(changes), code=2)
    assert "a label of batch 5 in epoch 1 has no output (Target 3 is out" in capsys.readouterr().err
