"""An example network for rows of numbers."""

from torch import Tensor, nn

from base import BaseModel
from utils.config.hints import PositiveInt, Share


class MLP(BaseModel):
    """Fully connected layers with ReLU.

    Args:
        in_features: numbers of a sample
        out_features: numbers to be predicted
        hidden: the width of each hidden layer
        dropout: share of the hidden values that are left out in training
    """

    def __init__(
        self,
        in_features: PositiveInt,
        out_features: PositiveInt = 1,
        hidden: tuple[PositiveInt, ...] = (64, 64),
        dropout: Share = 0.0,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(in_features, width), nn.ReLU(), nn.Dropout(dropout)]
            in_features = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_features) to (N, out_features)."""
        return self.head(self.layers(x))
