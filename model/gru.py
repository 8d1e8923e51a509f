"""An example network for sequences."""

import torch
from torch import Tensor, nn

from base import BaseModel
from utils.config.hints import PositiveInt, Share


class GRUClassifier(BaseModel):
    """The class of a sequence, from the state of a GRU (Cho et al., arXiv:1406.1078) at its end.

    The end is the last token that is not 0; what follows does not count.

    Args:
        num_classes: number of classes
        tokens: how many different tokens there are, with 0; 256 for bytes
        embedding: numbers that stand for a token
        hidden: numbers in the state
        layers: how many GRUs are on top of each other
        dropout: share of the values that are left out in training, between layers and at the end
    """

    def __init__(
        self,
        num_classes: PositiveInt,
        tokens: PositiveInt = 256,
        embedding: PositiveInt = 32,
        hidden: PositiveInt = 128,
        layers: PositiveInt = 1,
        dropout: Share = 0.2,
    ):
        super().__init__()
        self.embedding = nn.Embedding(tokens, embedding, padding_idx=0)
        between = dropout if layers > 1 else 0.0
        self.gru = nn.GRU(embedding, hidden, layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, length) of token numbers to logits (N, num_classes)."""
        states, _ = self.gru(self.embedding(tokens))
        end = ((tokens != 0).sum(1) - 1).clamp(min=0)
        # gather instead of packed sequences: ONNX has no such thing
        index = end[:, None, None].expand(-1, 1, states.shape[2])
        return self.head(self.dropout(torch.gather(states, 1, index)[:, 0]))
