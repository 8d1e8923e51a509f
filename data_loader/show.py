"""A page of what the network really sees:  python -m data_loader.show -c FILE

Of each class some training images: as the file has them, as the network gets them in evaluation,
and as it gets them in training, in three epochs. Each with its histogram: what is too dark shows.
"""

import argparse
import contextlib
import sys
from pathlib import Path

import numpy as np
from torch import Tensor

from base import BaseDataLoader
from logger.charts import image_uri, to_pil_image
from logger.page import write_html
from utils.config.resolve import from_file
from utils.errors import UserError
from utils.files import printable, shell_command
from utils.screen import run_command

AUGMENTED = 3
CLASSES = 20  # at most, those with the fewest images
LARGEST = 256  # pixels of an image in the page


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_loader.show", description=__doc__)
    add = parser.add_argument
    add("-c", "--config", metavar="FILE", type=Path, required=True)
    add("-s", "--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[],
        help="set any key of the config: -s data_loader.args.image_size=96")  # fmt: skip
    add("-n", type=int, default=4, metavar="N", help="images of each class (4)")
    add("-o", "--output", metavar="FILE", type=Path,
        help="the page (default: show.html in the cache folder beside the data)")  # fmt: skip

    def write(arguments: argparse.Namespace) -> None:
        page = show(arguments.config, arguments.set, arguments.n, arguments.output)
        print(f"written: {page}")

    return run_command(parser, argv, write)


def show(file: Path, changes: list[str], count: int, output: Path | None) -> Path:
    """Write the page; returns its path. Raises UserError if the samples are not images."""
    parser = from_file(file, changes)
    loader: BaseDataLoader = parser.init_obj("data_loader")
    if output is None:
        folder = getattr(getattr(loader, "folder", None), "folder", None)
        if folder is None:
            raise UserError(f"-o FILE: {type(loader).__name__} has no folder to write beside")
        folder = folder.resolve().with_name(f"{folder.resolve().name}.cache")
        folder.mkdir(exist_ok=True)
        output = folder / "show.html"
    shape = loader.input["shape"]
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UserError(f"{file}: the samples are not images, but inputs of shape {shape}")
    plain = loader.for_subset("train")
    rows = [(label, [_views(loader, plain, n) for n in places])
            for label, places in _chosen(plain, count)]  # fmt: skip
    write_html(
        output,
        Path(__file__).with_name("show.html"),
        name=parser["name"],
        run=file.name,
        rows=rows,
        shape="x".join(map(str, shape)),
        epochs=range(1, AUGMENTED + 1),
        transforms=_in_words(loader),
        command=shell_command("python", "-m", "data_loader.show", "-c", file),
    )
    return output


def _chosen(loader: BaseDataLoader, count: int) -> list[tuple[str, list[int]]]:
    """Classes, the rarest first, and positions of some of their samples."""
    targets = loader.dataset.offers.targets
    length = len(loader.dataset)
    labels = np.zeros(length, int)
    with contextlib.suppress(ValueError, TypeError):  # several labels each, or none
        labels = np.asarray(targets)[loader.dataset.indices].reshape(length)
    numbers, sizes = np.unique(labels, return_counts=True)
    chosen = []
    for number in numbers[np.argsort(sizes, kind="stable")][:CLASSES].tolist():
        own = np.flatnonzero(labels == number)
        places = own[np.linspace(0, len(own) - 1, min(count, len(own))).astype(int)].tolist()
        is_named = loader.classes and len(numbers) == len(loader.classes)
        chosen.append((loader.classes[number] if is_named else str(number), places))
    return chosen


def _views(loader: BaseDataLoader, plain: BaseDataLoader, position: int) -> dict[str, object]:
    """The pictures of a sample: {"name", "file", "seen", "augmented"}, and its "histogram"."""

    def seen(source: BaseDataLoader, epoch: int = 0) -> Tensor:
        batch = source.collate_fn(source.dataset.__getitems__([(epoch, position, 0)]))
        return batch[0][0]

    spec, original = loader.input, None
    paths = plain.paths
    if paths is not None and hasattr(loader, "read"):
        pixels = loader.read(plain.samples.contents.files[plain.dataset.indices[position]].path)
        original = to_pil_image(pixels.float() / 255, {"mean": [0.0], "std": [1.0]})
    image = to_pil_image(seen(plain), spec)
    levels = np.asarray(image.convert("L")).ravel()
    bars = np.histogram(levels, 32, (0, 256))[0]
    return {
        "name": printable(str(paths[position])) if paths is not None else str(position),
        "file": original and image_uri(original, LARGEST),
        "seen": image_uri(image, LARGEST),
        "augmented": [image_uri(to_pil_image(seen(loader, epoch), spec), LARGEST)
                      for epoch in range(AUGMENTED)],
        "bars": (bars / max(bars.max(), 1) * 30).round(1).tolist(),
    }  # fmt: skip


def _in_words(loader: BaseDataLoader) -> dict[str, list[str]]:
    """The loader's transforms for training and evaluation."""
    transforms = getattr(loader, "_transforms", {})
    return {name: [str(each) for each in transforms.get(name, [])] for name in ("train", "eval")}


if __name__ == "__main__":
    sys.exit(main())
