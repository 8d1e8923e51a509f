"""One pass over uneven batches equals scikit-learn's numbers over the whole."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torchmetrics import AUROC, F1Score

from base.base_task import Step
from model.metric import accuracy
from tests.conftest import assert_same
from trainer import Meters, evaluate
from trainer.evaluate import MAX_WAITING
from utils.engine.engine import Engine
from utils.errors import UserError

torch.manual_seed(0)
DATA, TARGET = torch.randn(103, 8), torch.randint(3, (103,))
BATCHES = [(DATA[i:j], TARGET[i:j]) for i, j in ((0, 50), (50, 51), (51, 100), (100, 103))]
METRICS = {
    "accuracy": accuracy,
    "f1": F1Score(task="multiclass", num_classes=3, average="macro"),
    "auroc": AUROC(task="multiclass", num_classes=3),
}


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 3))


def step(output, target):
    return Step(F.cross_entropy(output, target), output, target, len(target))


def test_uneven_batches_count_by_their_size():
    model = network()
    result = evaluate(model, BATCHES, F.cross_entropy, METRICS, Engine("cpu"))
    assert model.training  # left as it was
    probability = model.eval()(DATA).softmax(1).detach().numpy()
    assert list(result) == ["loss", "accuracy", "f1", "auroc"]
    target, predicted = TARGET.numpy(), probability.argmax(1)
    assert result["loss"] == pytest.approx(log_loss(target, probability), rel=1e-5)
    assert result["accuracy"] == pytest.approx(accuracy_score(target, predicted))
    assert result["f1"] == pytest.approx(f1_score(target, predicted, average="macro"))
    assert result["auroc"] == pytest.approx(
        roc_auc_score(target, probability, multi_class="ovr"), rel=1e-5
    )


def test_second_pass_starts_from_zero():
    model = network()
    passes = [evaluate(model, BATCHES, F.cross_entropy, METRICS, Engine("cpu")) for _ in range(2)]
    assert passes[0] == passes[1]


def test_sums_continue_from_a_checkpoint():
    outputs = [(torch.randn(len(t), 3), t) for _, t in BATCHES]
    whole, first = (Meters(METRICS, torch.device("cpu")) for _ in range(2))
    for output, target in outputs:
        whole.update(step(output, target))
    for output, target in outputs[:2]:
        first.update(step(output, target))
    second = Meters(METRICS, torch.device("cpu"))
    second.load_state_dict(first.state_dict())
    for output, target in outputs[2:]:
        second.update(step(output, target))
    assert_same(second.result(), whole.result())


def test_sums_from_a_checkpoint_go_to_the_device_in_use():
    """Torchmetrics objects would stay where the checkpoint was loaded: on the CPU."""
    first, device = Meters(METRICS, torch.device("cpu")), torch.device("meta")
    first.update(step(torch.randn(9, 3), torch.randint(3, (9,))))
    second = Meters({k: m.to(device) if isinstance(m, nn.Module) else m
                     for k, m in copy.deepcopy(METRICS).items()}, device)  # fmt: skip
    second.load_state_dict(first.state_dict())
    counts = [second.objects["f1"].tp, *second.objects["auroc"].preds, *second.sums.values()]
    assert {count.device for count in counts} == {device}


def test_no_step_waits_for_the_device():
    """Fake tensors cannot be read, so whatever reads one fails."""
    with FakeTensorMode():
        meters = Meters({"accuracy": accuracy}, torch.device("cuda"))
        for _ in range(2):
            output = torch.randn(8, 3, device="cuda")
            meters.update(step(output, torch.ones(8, dtype=torch.long, device="cuda")))
        meters._count_waiting()
        with pytest.raises(DataDependentOutputException):
            meters.recent_loss()


def test_only_small_outputs_wait_to_be_counted():
    counted = []
    small, large = torch.zeros(4, 3), torch.zeros(4, MAX_WAITING)
    meters = Meters(
        {"seen": lambda output, target: counted.append(output) or 0.5}, torch.device("cpu")
    )
    loss = torch.tensor(1.0, requires_grad=True)
    meters.update(Step(loss * 2, small, torch.zeros(4), 4))
    assert counted == []
    meters.update(Step(loss, large, torch.zeros(4), 4))
    assert [len(output[0]) for output in counted] == [3, MAX_WAITING]
    meters.update(Step(loss * 4, small, torch.zeros(8), 8))
    assert meters.result() == {"loss": (4 * 2 + 4 * 1 + 8 * 4) / 16, "seen": 0.5}
    assert len(counted) == 3


def test_a_number_per_class_is_called_by_its_class():
    f1 = F1Score(task="multiclass", num_classes=3, average="none")
    model = network()
    arguments = model, BATCHES, F.cross_entropy, {"f1": f1}, Engine("cpu"), None
    result, numbered = evaluate(*arguments, classes=["a", "b", "c"]), evaluate(*arguments)
    expected = f1_score(TARGET.numpy(), model.eval()(DATA).argmax(1).numpy(), average=None)
    assert [result[f"f1_{name}"] for name in "abc"] == pytest.approx(expected.tolist())
    assert [numbered[f"f1_{number}"] for number in range(3)] == pytest.approx(expected.tolist())
    with pytest.raises(UserError, match='an argument "average"'):
        evaluate(*arguments, classes=["a", "b"])


def test_values_that_are_not_one_number_are_refused():
    with pytest.raises(UserError, match="one number"):
        evaluate(network(), BATCHES, partial(F.cross_entropy, reduction="none"), {}, Engine("cpu"))
    with pytest.raises(UserError, match="no samples"):
        evaluate(network(), [], F.cross_entropy, {}, Engine("cpu"))
