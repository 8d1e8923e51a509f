"""Example networks: residual networks for small images (He et al., arXiv:1512.03385)."""

import torch.nn.functional as F
from torch import Tensor, nn

from base import BaseModel
from utils.config.hints import PositiveInt


class CifarResNet(BaseModel):
    """The paper's networks for CIFAR-10 (section 4.2); with 56 layers 0.86 million parameters.

    Three stages of 16, 32 and 64 channels. Where the width changes, the shortcut is a convolution
    (the paper's option B).

    Args:
        num_classes: number of classes
        depth: number of layers with weights, 6 n + 2: 20, 32, 44, 56 or 110 in the paper
        in_channels: 1 for grey images, 3 for colour
    """

    def __init__(
        self, num_classes: PositiveInt = 10, depth: PositiveInt = 56, in_channels: PositiveInt = 3
    ):
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth {depth} must be 6 n + 2: 20, 32, 44, 56, 110")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, blocks)
        self.layer2 = _stage(16, 32, 2, blocks)
        self.layer3 = _stage(32, 64, 2, blocks)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, height, width) to logits (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


class BasicBlock(nn.Module):
    """Two convolutions with a shortcut around them.

    Args:
        in_channels: channels of the input
        out_channels: channels of both convolutions
        stride: stride of the first convolution; 2 halves height and width
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


def _stage(in_channels: int, out_channels: int, stride: int, blocks: int) -> nn.Sequential:
    others = (BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(in_channels, out_channels, stride), *others)


class SmallResNet(BaseModel):
    """Three stages that each halve height and width; fast on CIFAR-10.

    The first block is that of ResNet-9 (Page, "How to train your ResNet", 2018).

    Args:
        num_classes: number of classes
        in_channels: 1 for grey images, 3 for colour
        width: channels of the first convolution; the stages have 2, 4 and 8 times as many
    """

    def __init__(
        self, num_classes: PositiveInt = 10, in_channels: PositiveInt = 3, width: PositiveInt = 64
    ):
        super().__init__()
        self.start = _convolution(in_channels, width)
        self.stages = nn.Sequential(
            _Stage(width, 2 * width, residual=True),
            _Stage(2 * width, 4 * width, residual=False),
            _Stage(4 * width, 8 * width, residual=True),
        )
        self.fc = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W), at least 8 x 8 pixels, to logits (N, num_classes)."""
        features = self.stages(self.start(x)).amax((2, 3))  # the maximum, as in ResNet-9
        return self.fc(features / 8)  # so that the first logits are small


class _Stage(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, residual: bool):
        super().__init__()
        self.main = nn.Sequential(_convolution(in_channels, out_channels), nn.MaxPool2d(2))
        blocks = [_convolution(out_channels, out_channels) for _ in range(2 if residual else 0)]
        self.residual = nn.Sequential(*blocks) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.main(x)
        return x if self.residual is None else x + self.residual(x)


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))
