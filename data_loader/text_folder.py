"""Lines of text in one file per class."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_loader.datasets import Balanced, InMemory, InMemoryDataLoader, fixed_part
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

    def _load(self, train: bool, augment: bool) -> InMemory:
        lines = {path.stem: _read(path) for path in sorted(Path(self.data_dir).glob("*.txt"))}
        if not lines:
            raise UserError(
                f"data_loader.args.data_dir: there are no .txt files in {self.data_dir}"
            )
        texts = [line for part in lines.values() for line in part]
        targets = np.repeat(np.arange(len(lines)), [len(part) for part in lines.values()])
        chosen = fixed_part(targets, len(texts), round(len(texts) * TEST_SHARE), train)
        size = self.length
        content = b"".join(texts[index].encode()[:size].ljust(size, b"\0") for index in chosen)
        tokens = torch.from_numpy(np.frombuffer(content, np.uint8).reshape(-1, size).astype(int))
        data = (Trimmed if augment else InMemory)(tokens, torch.from_numpy(targets[chosen]))
        data.classes, data.balanced = [*lines], augment and self.balance == "sampler"
        return data


class Trimmed(InMemory):
    """Lines of text as bytes (N, length); a batch is cut to its longest line."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        tokens, targets = self[indices]
        return tokens[:, : int((tokens != 0).sum(1).max())], targets


def _read(path: Path) -> list[str]:
    """The different lines of a file that are not empty. Raises UserError if it is not UTF-8."""
    try:
        lines = path.read_text(encoding="utf-8-sig").replace("\0", "").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{printable(str(path))} is not UTF-8 ({error.reason})") from None
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))
