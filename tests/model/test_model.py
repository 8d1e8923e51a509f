"""The network, losses and metrics compared with torch's and torchmetrics' own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from base import BaseModel
from model.loss import focal_loss
from model.metric import accuracy, top_k_acc
from model.model import LeNet, MnistModel


def test_base_model_is_abstract_and_shows_its_trainable_parameters():
    with pytest.raises(TypeError, match="forward"):
        BaseModel()
    model = LeNet()
    model.conv1.requires_grad_(False)
    assert str(model).endswith(f"Trainable parameters: {21_840 - 260:,}")


def test_lenet_is_the_original_network():
    model = MnistModel().eval()
    reference = nn.Sequential(
        model.conv1, nn.MaxPool2d(2), nn.ReLU(), model.conv2, nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), model.fc1, nn.ReLU(), model.fc2, nn.LogSoftmax(dim=1),
    )  # fmt: skip
    x = torch.randn(5, 1, 28, 28)
    torch.testing.assert_close(model(x), reference(x))
    # both losses can be used: log_softmax leaves log-probabilities as they are
    target = torch.tensor([0, 1, 2, 3, 4])
    torch.testing.assert_close(F.nll_loss(model(x), target), F.cross_entropy(model(x), target))


@pytest.mark.parametrize(("channels", "size"), [(3, 16), (1, 32), (3, 100)])
def test_lenet_takes_other_images(channels, size):
    assert LeNet(4, channels, size)(torch.randn(2, channels, size, size)).shape == (2, 4)


def test_focal_loss_with_gamma_0_is_cross_entropy():
    output, target = torch.randn(20, 4), torch.randint(4, (20,))
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(
        focal_loss(output, target, gamma=1e-9), F.cross_entropy(output, target)
    )
    torch.testing.assert_close(
        focal_loss(output, target, 1e-9, weight), F.cross_entropy(output, target, weight)
    )
    p = output.softmax(1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(
        focal_loss(output, target, gamma=2.0), (-((1 - p) ** 2) * p.log()).mean()
    )


def test_metrics_equal_torchmetrics():
    output, target = torch.randn(97, 6), torch.randint(6, (97,))
    for k in (1, 2, 6):
        expected = MulticlassAccuracy(6, top_k=k, average="micro")(output, target)
        torch.testing.assert_close(top_k_acc(output, target, k), expected)
    torch.testing.assert_close(
        accuracy(output, target), MulticlassAccuracy(6, average="micro")(output, target)
    )
    assert top_k_acc(output, target, k=9) == 1
