"""Lines of text in one file per class."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from base import BaseDataset
from data_loader.datasets import Balanced, InMemoryDataLoader, fixed_part
from utils.config.hints import PositiveInt
from utils.errors import UserError
from utils.files import printable

TEST_SHARE = 0.2


class TextFolderDataLoader(Balanced, InMemoryDataLoader):
    """Lines of text, one file per class: `data_dir/Irish.txt`, UTF-8.

    Samples are (bytes int64 (length,), class number). A byte is its number, 0 fills shorter lines
    up: in training to the longest of the batch, else always to `length`, as exported files need.
    A fifth of each class is for testing, the same in every run. A line counts once in its class.

    Args:
        data_dir: folder of the files
        length: bytes of a line that are read; the rest is cut off
    """

    def __init__(self, data_dir: str, length: PositiveInt = 32, **kwargs: Any):
        self.data_dir, self.length = data_dir, length
        super().__init__(**kwargs)

    def _load(self, train: bool, augment: bool) -> "Lines":
        lines = {path.stem: _read(path) for path in sorted(Path(self.data_dir).glob("*.txt"))}
        if not lines:
            raise UserError(
                f"data_loader.args.data_dir: there are no .txt files in {self.data_dir}"
            )
        texts = [line for part in lines.values() for line in part]
        targets = np.repeat(np.arange(len(lines)), [len(part) for part in lines.values()])
        chosen = fixed_part(targets, len(texts), round(len(texts) * TEST_SHARE), train)
        tokens = torch.zeros(len(chosen), self.length, dtype=torch.uint8)
        for row, index in zip(tokens, chosen.tolist(), strict=True):
            content = texts[index].encode()[: self.length]
            row[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        balanced = augment and self.balance == "sampler"
        return Lines(tokens, torch.from_numpy(targets[chosen]), [*lines], augment, balanced)


class Lines(BaseDataset):
    """Lines of text as bytes (N, length), held in memory and served in whole batches.

    Args:
        tokens: bytes, filled up with 0
        targets: class numbers (N,)
        classes: names of the classes
        trims: whether a batch is cut to its longest line
        balanced: whether all classes should come equally often
    """

    deterministic = True

    def __init__(
        self, tokens: Tensor, targets: Tensor, classes: list[str], trims: bool, balanced: bool
    ):
        self.tokens, self.targets, self.classes = tokens, targets, classes
        self.trims, self.balanced = trims, balanced

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.tokens[index].long(), self.targets[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        tokens = self.tokens[indices].long()
        if self.trims:
            tokens = tokens[:, : int((tokens != 0).sum(1).max())]
        return tokens, self.targets[indices]


def _read(path: Path) -> list[str]:
    """The different lines of a file that are not empty. Raises UserError if it is not UTF-8."""
    try:
        lines = path.read_text(encoding="utf-8-sig").replace("\0", "").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{printable(str(path))} is not UTF-8 ({error.reason})") from None
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))
