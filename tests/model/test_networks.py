"""Torchvision's networks: built for the data, trained one step, counted."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from model.freezing import set_training_mode
from model.heads import auxiliary_outputs, find_head, main_output
from model.model import LeNet
from model.summary import summary
from model.weights import load_weights
from parse_config import ConfigParser
from tests.conftest import DIGITS
from trainer.build import build_network
from utils.errors import UserError

FAMILIES = {  # name -> size of the images it is tried on
    "alexnet": 64, "vgg11_bn": 32, "resnet18": 32, "squeezenet1_1": 64, "densenet121": 32,
    "googlenet": 64, "inception_v3": 299, "mobilenet_v2": 32, "mobilenet_v3_small": 32,
    "efficientnet_b0": 32, "mnasnet0_5": 32, "shufflenet_v2_x0_5": 32, "regnet_y_400mf": 32,
    "resnext50_32x4d": 32, "convnext_tiny": 32, "vit_b_32": 64, "swin_t": 32, "maxvit_t": 224,
}  # fmt: skip
CLASSES = ["a", "b", "c"]


def parser(arch):
    return ConfigParser(copy.deepcopy(DIGITS) | {"arch": arch})


def train_one_step(name, size, channels):
    """Build for 3 classes, train one step, evaluate."""
    torch.manual_seed(0)
    model = build_network(parser({"type": name}), CLASSES, [channels, size, size])
    data, target = torch.randn(2, channels, size, size), torch.tensor([0, 2])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    set_training_mode(model)
    output = model(data)
    loss = F.cross_entropy(main_output(output), target) + 0.3 * sum(
        F.cross_entropy(o, target) for o in auxiliary_outputs(output)
    )
    loss.backward()
    optimizer.step()
    model.eval()
    with torch.no_grad():
        assert main_output(model(data)).shape == (2, 3)
    assert model.get_submodule(find_head(model)).weight.shape[0] == 3


@pytest.mark.parametrize("name", FAMILIES)
def test_one_network_of_each_family(name):
    train_one_step(name, FAMILIES[name], 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_one_network_of_each_family_on_grey_images(name):
    train_one_step(name, FAMILIES[name], 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.list_models(module=models))
def test_every_builder(name):
    sizes = {"maxvit_t": 224, "inception_v3": 299}  # the smallest that they take
    size = sizes.get(name, 112 if name.endswith(("_14", "_16")) else 96)
    train_one_step(name, size, 3)


def test_grey_images_give_the_output_of_the_same_images_in_colour():
    torch.manual_seed(0)
    colour = models.resnet18(num_classes=3).eval()
    grey = build_network(parser({"type": "resnet18"}), CLASSES, [1, 32, 32]).eval()
    load_weights(grey, colour.state_dict(), "x", new_head=False)
    x = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_other_numbers_of_channels_are_refused():
    with pytest.raises(UserError, match="ResNet takes images of 3 channels, not of 4"):
        build_network(parser({"type": "resnet18"}), CLASSES, [4, 32, 32])


def test_a_builder_with_kwargs_gets_the_number_of_classes_only(own_code):
    own_code(
        "any_net",
        "from torch import nn\n"
        "def make(kind, **kwargs):\n"
        "    return nn.Linear(4, kwargs.pop('num_classes'), **kwargs)\n",
    )
    arch = {"type": "any_net.make", "args": {"kind": "x"}}
    assert build_network(parser(arch), CLASSES, [3, 32, 32]).out_features == 3


def test_arguments_of_builders_are_checked():
    message = r'resnet18 takes no "num_clases"; did you mean "num_classes"'
    with pytest.raises(UserError, match=message):
        parser({"type": "resnet18", "args": {"num_clases": 3}})
    with pytest.raises(UserError, match="should be a number"):
        parser({"type": "mobilenet_v2", "args": {"dropout": "much"}})
    network = parser({"type": "resnet18", "args": {"zero_init_residual": True}}).init_obj("arch")
    assert network.fc.out_features == 1000


@pytest.mark.parametrize(
    ("name", "size", "macs", "parameters"),
    [
        ("resnet18", 224, 1.814e9, 11_689_512),
        ("mobilenet_v2", 224, 0.301e9, 3_504_872),
        ("vgg11", 224, 7.61e9, 132_863_336),
    ],
)
def test_summary_counts_what_torchvision_publishes(name, size, macs, parameters):
    with torch.device("meta"):
        model = getattr(models, name)()
    rows = summary(model, torch.empty(2, 3, size, size, device="meta"))
    label, shape, total, trainable, counted = rows[-1]
    assert (label, shape) == ("all", "1000")
    assert int(total.replace(",", "")) == int(trainable.replace(",", "")) == parameters
    assert int(counted.replace(",", "")) == pytest.approx(macs, rel=0.01)


def test_summary_of_lenet_layer_by_layer():
    model = LeNet()
    model.conv1.requires_grad_(False)
    rows = summary(model, torch.zeros(2, 1, 28, 28))
    assert rows == [
        ["layer", "output", "parameters", "trainable", "multiply-adds"],
        ["conv1 Conv2d", "10x24x24", "260", "0", f"{10 * 24 * 24 * 25:,}"],
        ["conv2 Conv2d", "20x8x8", "5,020", "5,020", f"{20 * 8 * 8 * 250:,}"],
        ["fc1 Linear", "50", "16,050", "16,050", "16,000"],
        ["fc2 Linear", "10", "510", "510", "500"],
        ["all", "10", "21,840", "21,580", f"{144_000 + 320_000 + 16_500:,}"],
    ]


def test_the_head_is_the_last_layer_with_weights():
    assert [find_head(n) for n in (LeNet(), models.squeezenet1_1())] == ["fc2", "classifier.1"]
    with pytest.raises(UserError, match="no linear"):
        find_head(nn.Flatten())
