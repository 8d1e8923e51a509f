import torch.nn.functional as F
from torch import Tensor, nn

from base import BaseModel
from utils.hints import PositiveInt


class LeNet(BaseModel):
    """Two convolutions, two fully connected layers: LeCun et al. 1998, doi:10.1109/5.726791, with ReLU and dropout.

    Gives log-probabilities (N, num_classes), which nll_loss wants; cross_entropy takes them as well, since
    log_softmax leaves them as they are.

    Args:
        num_classes: what to tell apart
        in_channels: 1 for grey pictures, 3 for colour
        image_size: height and width of the pictures in pixels, 16 at least
    """

    def __init__(self, num_classes: PositiveInt = 10, in_channels: PositiveInt = 1, image_size: PositiveInt = 28):
        super().__init__()
        side = ((image_size - 4) // 2 - 4) // 2
        if side < 1:
            raise ValueError(f"image_size {image_size} is too small; 16 at least")
        self.conv1 = nn.Conv2d(in_channels, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.dropout2d = nn.Dropout2d()
        self.fc1 = nn.Linear(20 * side * side, 50)
        self.dropout = nn.Dropout()
        self.fc2 = nn.Linear(50, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, image_size, image_size) to log-probabilities (N, num_classes)."""
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.dropout2d(self.conv2(x)), 2))
        x = F.relu(self.fc1(x.flatten(1)))
        return F.log_softmax(self.fc2(self.dropout(x)), dim=1)


class MnistModel(LeNet):
    """LeNet by the name it has in pytorch-template's configs."""


class SmallResNet(BaseModel):
    """A residual network for small pictures: three stages, each half as large, He et al., arXiv:1512.03385.

    Its first block is that of ResNet-9 (Page, "How to train your ResNet", 2018): fast on CIFAR-10.

    Args:
        num_classes: what to tell apart
        in_channels: 1 for grey pictures, 3 for colour
        width: channels of the first convolution; the stages have twice, four and eight times as many
    """

    def __init__(self, num_classes: PositiveInt = 10, in_channels: PositiveInt = 3, width: PositiveInt = 64):
        super().__init__()
        self.start = _convolution(in_channels, width)
        self.stages = nn.Sequential(
            _Stage(width, 2 * width, residual=True),
            _Stage(2 * width, 4 * width, residual=False),
            _Stage(4 * width, 8 * width, residual=True),
        )
        self.fc = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W), 8 pixels a side at least, to logits (N, num_classes)."""
        return self.fc(self.stages(self.start(x)).amax((2, 3)) / 8)  # small logits at the start; the maximum as in ResNet-9


class _Stage(nn.Module):
    def __init__(self, before: int, after: int, residual: bool):
        super().__init__()
        self.main = nn.Sequential(_convolution(before, after), nn.MaxPool2d(2))
        self.residual = nn.Sequential(_convolution(after, after), _convolution(after, after)) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.main(x)
        return x if self.residual is None else x + self.residual(x)


def _convolution(before: int, after: int) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True))
