"""The example networks for small images."""

import pytest
import torch

from model.resnet_cifar import CifarResNet, SmallResNet


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)
def test_cifar_resnet_has_the_parameters_of_the_paper(depth, millions):
    """Table 6 of arXiv:1512.03385, whose shortcuts have no weights."""
    model = CifarResNet(depth=depth)
    shortcuts = sum(p.numel() for n, p in model.named_parameters() if "shortcut" in n)
    count = sum(p.numel() for p in model.parameters()) - shortcuts
    assert count / 1e6 == pytest.approx(millions, rel=0.03)


def test_depth_must_fit_the_blocks():
    with pytest.raises(ValueError, match="depth 21"):
        CifarResNet(depth=21)


@pytest.mark.parametrize("build", [CifarResNet, SmallResNet])
def test_example_networks_take_grey_and_colour_images(build):
    options = {"depth": 8} if build is CifarResNet else {"width": 4}
    for channels in (1, 3):
        model = build(num_classes=4, in_channels=channels, **options)
        assert model(torch.randn(2, channels, 32, 32)).shape == (2, 4)
