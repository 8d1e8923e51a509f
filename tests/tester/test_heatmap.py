"""Heat maps are hottest where the evidence is, by construction, and do not change the network."""

import copy

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from model.heads import find_head
from parse_config import ConfigParser
from tester.heatmap import as_grid, find_layer, heat_maps
from tests.conftest import DIGITS, assert_same
from trainer.build import build_network
from utils.errors import UserError

METHODS = ["GradCAM", "GradCAMpp", "SmoothGradCAMpp", "XGradCAM", "LayerCAM"]


class Corner(nn.Module):
    """Class 1: the upper left 4x4 of 16x16 pixels are bright; class 0: the lower right ones."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(1, 2, 4, stride=4, bias=False)
        nn.init.ones_(self.features.weight)

    def forward(self, x):
        maps = self.features(x)
        return torch.stack([maps[:, 0, -1, -1], maps[:, 1, 0, 0]], dim=1)


def vit():
    model = VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        num_classes=5,
    )
    nn.init.normal_(model.heads.head.weight)  # torchvision's zeros would hide the evidence
    return model


def swin():
    return SwinTransformer([4, 4], 12, [2, 2], [1, 2], [4, 4], num_classes=5)


NETWORKS = {
    "resnet18": (lambda: models.resnet18(num_classes=5), "layer4"),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(num_classes=5), "features"),
    "squeezenet": (lambda: models.squeezenet1_1(num_classes=5), "classifier.2"),
    "vgg11": (
        lambda: nn.Sequential(
            models.vgg11(num_classes=5).features, nn.AdaptiveAvgPool2d(7), Head(512)
        ),
        "0",
    ),
    "vit": (vit, "encoder.layers.encoder_layer_1.ln_1"),
    "swin": (swin, "permute"),
}


class Head(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.linear = nn.Linear(channels, 5)

    def forward(self, x):
        return self.linear(x.mean((2, 3)))


@pytest.mark.parametrize("method", METHODS)
def test_hottest_where_the_evidence_is(method):
    data = torch.rand(2, 1, 16, 16) * 0.1
    data[0, :, :4, :4] = data[1, :, -4:, -4:] = 1
    heat = heat_maps(Corner(), data, torch.tensor([1, 0]), method)
    assert heat.shape == (2, 16, 16)
    assert heat.amax((1, 2)).tolist() == [1, 1]
    assert heat.amin() == 0
    for one, corner in ((0, (slice(4), slice(4))), (1, (slice(12, 16), slice(12, 16)))):
        assert heat[one][corner].mean() > 0.5 > heat[one].mean()
        assert heat[one].flatten().argmax() == heat[one].argmax()
        assert torch.isclose(heat[one][corner].max(), heat[one].max())


def test_grad_cam_equals_its_papers_formula():
    torch.manual_seed(0)
    features, head = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), Head(6)
    data, classes = torch.randn(3, 3, 12, 12), torch.tensor([0, 4, 2])
    with torch.enable_grad():
        activation = features(data)
        score = head(activation).gather(1, classes[:, None]).sum()
        gradient = torch.autograd.grad(score, activation)[0]
    expected = (gradient.mean((2, 3), keepdim=True) * activation).sum(1).relu().detach()
    expected = nn.functional.interpolate(
        expected[:, None], (12, 12), mode="bilinear", align_corners=False
    )[:, 0]
    expected -= expected.amin((1, 2), keepdim=True)
    expected /= expected.amax((1, 2), keepdim=True)
    heat = heat_maps(nn.Sequential(features, head), data, classes, "GradCAM")
    assert torch.allclose(heat, expected, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_frozen_networks_of_all_kinds_stay_unchanged(name):
    build, layer = NETWORKS[name]
    torch.manual_seed(0)
    model = build().train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    next(model.parameters()).requires_grad_(True)
    part = list(model.modules())[3]
    part.eval()  # a frozen batch norm, say
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    data, classes = (
        torch.randn(2, 3, *((32, 32) if name == "vit" else (64, 96))),
        torch.tensor([1, 3]),
    )
    assert_same([find_layer(model.eval(), data.clone().requires_grad_(), classes)], [layer])
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    random_state = torch.get_rng_state()
    for method in ("LayerCAM", "SmoothGradCAMpp"):
        heat = heat_maps(model, data, classes, method)
        assert heat.shape == (2, *data.shape[2:])
        assert heat.min() >= 0
        assert heat.max() <= 1
        assert heat.amax() > 0.5
    assert [module.training for module in model.modules()] == modes
    assert_same(dict(model.state_dict()), state)
    assert [p.requires_grad for p in model.parameters()] == [True] + [False] * (
        len(list(model.parameters())) - 1
    )
    assert all(p.grad is None for p in model.parameters())
    assert not any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules()
    )
    assert not data.requires_grad
    assert torch.equal(torch.get_rng_state(), random_state)


def test_tokens_and_channels_last_become_grids():
    numbers = torch.arange(2 * 5 * 6 * 8).view(2, 5, 6, 8)  # (N, C, h, w), a grid of 6x8
    tokens = numbers.flatten(2).transpose(1, 2)
    with_class = torch.cat([torch.full((2, 1, 5), -1), tokens], dim=1)
    for output in (numbers, numbers.permute(0, 2, 3, 1), tokens, with_class):
        assert torch.equal(as_grid(output, 6 / 8), numbers)


def test_a_very_sure_network_has_a_map_too():
    model = Corner()
    model.features.weight.data *= 1e-12
    heat = heat_maps(model, torch.ones(1, 1, 16, 16), torch.tensor([1]))
    assert heat.max() == 1


def test_layers_by_name_and_networks_without_places():
    model, data, classes = (
        models.resnet18(num_classes=5),
        torch.randn(1, 3, 64, 64),
        torch.tensor([0]),
    )
    fine, coarse = (heat_maps(model, data, classes, layer=layer) for layer in ("layer2", "layer4"))
    assert not torch.equal(fine, coarse)
    with pytest.raises(UserError, match='no layer "layer5"; did you mean "layer'):
        heat_maps(model, data, classes, layer="layer5")
    with pytest.raises(UserError, match="the output of fc has no places"):
        heat_maps(model, data, classes, layer="fc")
    with pytest.raises(UserError, match="no layer whose output has places"):
        heat_maps(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.randn(1, 3, 2, 2), classes)


FAMILIES = {  # name -> size of the images
    "alexnet": 64, "vgg11_bn": 32, "resnet18": 32, "squeezenet1_1": 64, "densenet121": 32,
    "googlenet": 64, "inception_v3": 299, "mobilenet_v2": 32, "mobilenet_v3_small": 32,
    "efficientnet_b0": 32, "mnasnet0_5": 32, "shufflenet_v2_x0_5": 32, "regnet_y_400mf": 32,
    "resnext50_32x4d": 32, "convnext_tiny": 32, "vit_b_32": 64, "swin_t": 32, "maxvit_t": 224,
}  # fmt: skip


def check_torchvision_network(name, size, channels):
    torch.manual_seed(0)
    config = ConfigParser(copy.deepcopy(DIGITS) | {"arch": name})
    model = build_network(config, ["a", "b", "c"], [channels, size, size])
    nn.init.normal_(model.get_submodule(find_head(model)).weight, std=0.01)  # some are zero
    heat = heat_maps(model, torch.randn(2, channels, size, size), torch.tensor([0, 1]))
    assert heat.shape == (2, size, size)
    assert 0 <= heat.min() <= heat.max() <= 1


@pytest.mark.parametrize("name", FAMILIES)
def test_one_network_of_each_torchvision_family(name):
    check_torchvision_network(name, FAMILIES[name], 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_one_network_of_each_torchvision_family_on_grey_images(name):
    check_torchvision_network(name, FAMILIES[name], 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.list_models(module=models))
def test_every_torchvision_network(name):
    sizes = {"maxvit_t": 224, "inception_v3": 299}  # the smallest that they take
    size = sizes.get(name, 112 if name.endswith(("_14", "_16")) else 96)
    check_torchvision_network(name, size, 3)
