from abc import ABC, abstractmethod

import torch
from torch import nn


class BaseModel(nn.Module, ABC):
    """A network: write `forward`. Printing it also tells how many parameters train."""

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A batch (N, ...) to the network's output; of a classifier (N, classes)."""

    def __str__(self) -> str:
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return f"{super().__str__()}\nTrainable parameters: {trainable:,}"
