"""The residual networks for pictures of 32 x 32 (He et al., arXiv:1512.03385, section 4.2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from base import BaseModel
from utils.hints import PositiveInt


class CifarResNet(BaseModel):
    """Three stages of 16, 32 and 64 channels; 56 layers have 0.86 million parameters.

    Where the width changes, the shortcut is a convolution (the paper's option B).

    Args:
        num_classes: what to tell apart
        depth: layers with weights: 20, 32, 44, 56 or 110 in the paper, 6 n + 2
        in_channels: 1 for grey pictures, 3 for colour
    """

    def __init__(self, num_classes: PositiveInt = 10, depth: PositiveInt = 56, in_channels: PositiveInt = 3):
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth {depth} should be 6 n + 2: 20, 32, 44, 56, 110")
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
    """Two convolutions beside a shortcut.

    Args:
        in_channels: of what comes in
        out_channels: of both convolutions
        stride: of the first; 2 halves height and width
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


def _stage(in_channels: int, out_channels: int, stride: int, blocks: int) -> nn.Sequential:
    others = (BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(in_channels, out_channels, stride), *others)
