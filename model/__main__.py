"""List the networks that a configuration can name:  python -m model [WORD ...]

With words, those whose names contain one of them. Multiply-adds are those of one sample of the
usual size: 3 x 224 x 224 for networks of torchvision.
"""

import argparse
import inspect
import sys
import warnings
from collections.abc import Sequence

import torch

from logger.files import aligned
from model.summary import count
from utils.config.sections import SOURCES
from utils.errors import UserError
from utils.screen import run_command

HEADER = ["arch", "parameters", "multiply-adds", "from"]
SIZES = ((3, 224, 224), (3, 299, 299), (3, 32, 32), (1, 28, 28))  # the first that fits
CLASSES = 1000


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m model", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD")
    return run_command(parser, argv, lambda arguments: list_networks(arguments.words))


def list_networks(words: Sequence[str]) -> None:
    """Print the table. Raises UserError if no network's name contains one of the words."""
    source, rows = SOURCES["arch"], [HEADER]
    names = dict.fromkeys(source.own_names(), "model/")
    names |= dict.fromkeys(source.library_names("torchvision.models"), "torchvision")
    for name, origin in names.items():
        if not words or any(word.lower() in name.lower() for word in words):
            sizes = SIZES if origin == "torchvision" else SIZES[::-1]
            rows.append([name, *_measured(source.find(name), sizes), origin])
    if len(rows) == 1:
        raise UserError(f"no network has {' or '.join(words)} in its name")
    print("\n".join(aligned(rows)))


def _measured(builder: object, sizes: Sequence[tuple[int, int, int]]) -> list[str]:
    """Parameters and multiply-adds of a network as it is built without arguments, in words."""
    accepted = inspect.signature(builder).parameters
    for shape in sizes:
        wanted = {"in_channels": shape[0], "image_size": shape[1], "input_size": list(shape[1:])}
        wanted |= {"num_classes": CLASSES if shape[1] >= 224 else 10, "init_weights": False}
        arguments = {name: value for name, value in wanted.items() if name in accepted}
        try:
            with warnings.catch_warnings(), torch.device("meta"):  # nothing is computed
                warnings.simplefilter("ignore")
                size, _ = count(builder(**arguments), torch.empty(2, *shape))
        except (UserError, TypeError, ValueError, RuntimeError, NotImplementedError):
            continue
        side = f" at {'x'.join(map(str, shape))}" if shape != SIZES[0] else ""
        return [f"{size['parameters'] / 1e6:,.2f} M", f"{size['macs'] / 1e9:.3f} G{side}"]
    return ["–", "–"]


if __name__ == "__main__":
    sys.exit(main())
