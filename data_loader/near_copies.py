"""Images that are near copies of others: turned, mirrored, resized or compressed again."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from data_loader.cache import Contents

SIDE = 12  # pixels of a thumbnail
CONTRAST = 2.0  # of a thumbnail's 256 grey values, below which it tells nothing
# Pictures of mean 0 and length 1 are compared, so that their distance is at most 2.
NEAR = 0.2  # two thumbnails, beyond which nothing else is compared
FINE, COARSE = 64, 8  # pixels; of a pair so near, the structures between these sizes are compared
# Copies are nearer there than this share of the distance between any two images: photos of parts
# in the same fixture resemble each other.
PART, SAMPLE = 0.65, 50
LOOKED_AT = 200  # pairs whose images are read
BLOCK = 1000  # thumbnails that are compared with all others at once


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """An image, uint8 (height, width, channels), small and grey: int8 (N,); 0 without contrast."""
    values = _grey(pixels, SIDE)
    scale = 0 if values.std() < CONTRAST else 127 / abs(values).max()
    return (values * scale).round().astype(np.int8).flatten()


def near_copies(some: "Contents", others: "Contents") -> list[tuple[str, str]]:
    """The images of `some` that are near copies of one of `others`, each with the nearest one, by
    name. Equal images are left out.
    """
    first, second = _thumbnails(some), _thumbnails(others)
    pairs = sorted(_candidates(first, second))[:LOOKED_AT]
    if not pairs:
        return []
    with_contrast = np.flatnonzero(second.any((1, 2))).tolist()
    sample = with_contrast[:: 1 + len(with_contrast) // SAMPLE]
    theirs = np.stack([_fine(others, column) for column in sample])
    typical = np.median(_turned_distances(_fine(some, pairs[0][1]), theirs))
    found = []
    for _, row, column in pairs:
        distance = _turned_distances(_fine(some, row), _fine(others, column)[None])[0]
        one, other = some.records.table[row], others.records.table[column]
        if distance < PART * typical and one["digest"] != other["digest"]:
            found.append((some.files[row].name, others.files[column].name))
    return found


def _thumbnails(contents: "Contents") -> np.ndarray:
    """Those of all images; zeros, which are far from everything, for images without contrast."""
    thumbnails = (
        contents.records.table["content"]["thumbnail"].astype(np.float32).reshape(-1, SIDE, SIDE)
    )
    thumbnails -= thumbnails.mean((1, 2), keepdims=True)
    sizes = np.linalg.norm(thumbnails, axis=(1, 2), keepdims=True)
    return thumbnails / sizes.clip(min=1e-6)


def _candidates(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[float, int, int]]:
    """Each of the first thumbnails that is near one of the second: distance, place, place there."""
    signs, others = _signatures(first), _signatures(second)
    for start in range(0, len(first), BLOCK):
        near = _distances(signs[start : start + BLOCK], others) < NEAR
        for row in np.flatnonzero(near.any(1)):
            columns = np.flatnonzero(near[row])
            distances = _turned_distances(first[start + row], second[columns])
            if distances.min() < NEAR:
                yield float(distances.min()), start + int(row), int(columns[distances.argmin()])


def _signatures(thumbnails: np.ndarray) -> np.ndarray:
    """Of thumbnails (N, side, side) what remains if they are turned and mirrored, (N, numbers).

    The distance of two is at most that of the thumbnails themselves, turned in any way. Mirroring
    only changes signs of the cosine transform, turning exchanges its rows and columns.
    """
    from scipy.fft import dctn  # takes a while to import

    sizes = np.abs(dctn(thumbnails, axes=(1, 2), norm="ortho"))
    exchanged = sizes.swapaxes(1, 2)
    parts = np.triu(np.maximum(sizes, exchanged)), np.triu(np.minimum(sizes, exchanged), 1)
    return np.concatenate([part.reshape(len(thumbnails), -1) for part in parts], 1)


def _turned_distances(image: np.ndarray, others: np.ndarray) -> np.ndarray:
    """From a thumbnail (side, side), turned and mirrored to fit, to others (N, side, side)."""
    turned = [np.rot90(image, quarter) for quarter in range(4)]
    turned += [image[:, ::-1] for image in turned]
    return _distances(np.stack(turned).reshape(8, -1), others.reshape(len(others), -1)).min(0)


def _distances(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Between vectors of length 1: (N, D) and (M, D) give (N, M)."""
    return np.sqrt(np.maximum(0, 2 - 2 * ones @ others.T))


def _fine(contents: "Contents", place: int) -> np.ndarray:
    """The structures of an image that a thumbnail does not show."""
    pixels = contents.image(place).permute(1, 2, 0).numpy()
    values = _grey(pixels, FINE)
    coarse = Image.fromarray(_grey(pixels, COARSE)).resize((FINE, FINE), Image.Resampling.BICUBIC)
    return _normalised(values - np.asarray(coarse))


def _grey(pixels: np.ndarray, side: int) -> np.ndarray:
    """The image reduced to side x side grey values, less their mean."""
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).convert("L")
    values = np.asarray(image.resize((side, side), Image.Resampling.BOX), np.float32)
    return values - values.mean()


def _normalised(image: np.ndarray) -> np.ndarray:
    image = image - image.mean()
    return image / max(np.linalg.norm(image), 1e-6)
