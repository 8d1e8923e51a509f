"""An example network for segmentation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from base import BaseModel
from utils.config.hints import PositiveInt


class UNet(BaseModel):
    """A small U-Net of three levels (Ronneberger et al., arXiv:1505.04597), with batch norms.

    Height and width may be any multiple of 4.

    Args:
        num_classes: number of classes
        in_channels: 1 for grey images, 3 for colour
        width: channels of the first level; each further level has twice as many
    """

    def __init__(
        self, num_classes: PositiveInt = 2, in_channels: PositiveInt = 1, width: PositiveInt = 16
    ):
        super().__init__()
        self.down1 = _block(in_channels, width)
        self.down2 = _block(width, 2 * width)
        self.bottom = _block(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.merge2 = _block(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.merge1 = _block(2 * width, width)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes, H, W)."""
        large = self.down1(x)
        medium = self.down2(F.max_pool2d(large, 2))
        small = self.bottom(F.max_pool2d(medium, 2))
        medium = self.merge2(torch.cat([self.up2(small), medium], 1))
        return self.head(self.merge1(torch.cat([self.up1(medium), large], 1)))


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two convolutions that keep height and width."""
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [
            nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
