import torch.nn.functional as F
from torch import Tensor, nn

from base import BaseModel
from utils.config.hints import PositiveInt


class LeNet(BaseModel):
    """Two convolutions and two fully connected layers, with ReLU and dropout.

    LeCun et al. 1998, doi:10.1109/5.726791. Returns log-probabilities (N, num_classes), as nll_loss
    expects; cross_entropy works too, because log_softmax leaves log-probabilities unchanged.

    Args:
        num_classes: number of classes
        in_channels: 1 for grey images, 3 for colour
        image_size: height and width of the images in pixels, at least 16
    """

    def __init__(
        self,
        num_classes: PositiveInt = 10,
        in_channels: PositiveInt = 1,
        image_size: PositiveInt = 28,
    ):
        super().__init__()
        side = ((image_size - 4) // 2 - 4) // 2
        if side < 1:
            raise ValueError(f"image_size {image_size} is too small; it must be at least 16")
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
    """LeNet under the name that pytorch-template's configs use."""
