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
from base.samples import spaced
from data_loader.index import cache_folder
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
    return run_command(parser, argv, lambda args: show(args.config, args.set, args.n, args.output))


def show(file: Path, changes: list[str], count: int, output: Path | None) -> None:
    """Write the page. Raises UserError if the samples are not images."""
    parser = from_file(file, changes)
    loader: BaseDataLoader = parser.init_obj("data_loader")
    if output is None:
        folder = getattr(getattr(loader, "folder", None), "folder", None)
        if folder is None:
            raise UserError(f"-o FILE: {type(loader).__name__} has no folder to write beside")
        output = cache_folder(folder) / "show.html"
        output.parent.mkdir(exist_ok=True)
    shape = loader.input["shape"]
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UserError(f"{file}: the samples are not images, but inputs of shape {shape}")
    plain = loader.for_subset("train")
    rows = [
        (label, [_views(loader, plain, position) for position in positions])
        for label, positions in _chosen(plain, count)
    ]
    write_html(
        output,
        Path(__file__).with_name("show.html"),
        name=parser["name"],
        run=file.name,
        rows=rows,
        shape="x".join(map(str, shape)),
        epochs=range(1, AUGMENTED + 1),
        transforms=getattr(loader, "_transforms", {}),
        command=shell_command("python", "-m", "data_loader.show", "-c", file),
    )
    print(f"written: {output}")


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
        places = own[spaced(len(own), count)].tolist()
        is_named = loader.classes and len(numbers) == len(loader.classes)
        chosen.append((loader.classes[number] if is_named else str(number), places))
    return chosen


def _views(loader: BaseDataLoader, plain: BaseDataLoader, position: int) -> dict[str, object]:
    """The pictures of a sample: {"name", "file", "seen", "augmented"}, and its "histogram"."""

    def seen(source: BaseDataLoader, epoch: int = 0) -> Tensor:
        batch = source.collate_fn(source.dataset.__getitems__([(epoch, position, 0)]))
        return batch[0][0]

    spec, paths, original = loader.input, plain.paths, None
    if hasattr(plain, "part"):  # the images are files
        pixels = plain.part().image(position).float() / 255
        original = image_uri(to_pil_image(pixels, {"mean": [0.0], "std": [1.0]}), LARGEST)
    image = to_pil_image(seen(plain), spec)
    bars = np.histogram(np.asarray(image.convert("L")), 32, (0, 256))[0]
    return {
        "name": printable(str(paths[position])) if paths is not None else str(position),
        "file": original,
        "seen": image_uri(image, LARGEST),
        "augmented": [image_uri(to_pil_image(seen(loader, epoch), spec), LARGEST)
                      for epoch in range(AUGMENTED)],
        "bars": (bars / max(bars.max(), 1) * 30).round(1).tolist(),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
