"""Which files belong to a data set, to which subset and to which class.

`find_files` is the one rule for training, tests and predictions.
"""

import collections
import functools
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_loader.images import image_suffixes
from utils.config.lookup import did_you_mean
from utils.engine.randomness import derive_seed
from utils.errors import UserError
from utils.files import printable

SUBSETS = ("train", "val", "test")
NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}  # of folders, in lower case
# folders that Windows, macOS and network disks make
JUNK = {"$recycle.bin", "recycler", "system volume information", "lost+found", "__macosx",
        "@eadir", "@recycle", "#recycle", "#snapshot", "__pycache__"}  # fmt: skip


class Found(NamedTuple):
    """The files below a folder.

    Attributes:
        images: paths of the files whose names are those of images, in torchvision's order
        ignored: paths of the other files
        folders: names of the folders directly in it
        notes: sentences about what was left out, and about files that may be masks
    """

    images: list[str]
    ignored: list[str]
    folders: list[str]
    notes: list[str]


class File(NamedTuple):
    """An image file.

    Attributes:
        path: as the system needs it; `printable` shows it
        name: path relative to the data set's folder, with /
        label: name of its class
        target: number of its class
    """

    path: str
    name: str
    label: str
    target: int


def find_files(folder: Path) -> Found:
    """The files below `folder`; links are followed, but no folder is read twice.

    Left out are hidden files and folders, and folders that a system made. Raises UserError if most
    images of a folder have a partner of the same name: those are masks, or other copies.
    """
    root, suffixes = str(folder), image_suffixes()
    images, ignored, folders, left_out = [], [], [], []
    # a link to a folder above would contain this one again, and its neighbours
    seen = {str(parent) for parent in folder.resolve().parents}
    waiting, links = [root], []
    while waiting or links:
        links.sort(reverse=True)  # last, as their images may be reached without them
        place = (waiting or links).pop()
        if (real := os.path.realpath(place)) in seen:
            left_out.append(place)
            continue
        seen.add(real)
        with os.scandir(place) as entries:
            for entry in entries:
                # a link may lead nowhere, for which its entry may raise an error
                is_link = entry.is_symlink()
                is_folder = os.path.isdir(entry.path) if is_link else entry.is_dir()
                if entry.name.startswith(".") or entry.name.lower() in JUNK:
                    left_out += [entry.path] * is_folder
                elif is_folder:
                    (links if is_link else waiting).append(entry.path)
                    folders += [entry.name] * (place == root)
                elif is_link or entry.is_file():  # a named pipe would never end
                    is_image = os.path.splitext(entry.name)[1].lower() in suffixes
                    (images if is_image else ignored).append(entry.path)
    start = len(os.path.join(root, ""))
    images.sort(key=lambda path: (path[start:].partition(os.sep)[0], *os.path.split(path)))
    notes = _partners(images)
    if left_out:
        why = "hidden, made by a system, or reached before through another path"
        notes.append(f"{len(left_out)} folders left out ({why}): {some(sorted(left_out))}")
    if renamed := [path for path in images if printable(path) != path]:
        shown = some(renamed)
        notes.append(f"{len(renamed)} paths are not UTF-8; they are shown as {shown}")
    return Found(images, sorted(ignored), sorted(folders), notes)


def _partners(images: Iterable[str]) -> list[str]:
    """A sentence about images with a partner of the same name: x.jpg and x.png, or x_mask.jpg."""
    groups = collections.defaultdict(list)
    for path in images:
        place, name = os.path.split(path)
        stem = re.sub(r"[-_. ]?mask$", "", os.path.splitext(name)[0].lower())
        groups[place, stem].append(path)
    pairs = [paths for paths in groups.values() if len({path.lower() for path in paths}) > 1]
    if not pairs:
        return []
    sizes = collections.Counter(map(os.path.dirname, images))
    paired = collections.Counter(os.path.dirname(path) for paths in pairs for path in paths)
    text = "images have partners of the same name, as masks beside their images do"
    for place, count in paired.items():
        # A few may be a coincidence; if a network learns from masks, its results look good
        if 2 * count > sizes[place]:
            example = next(paths for paths in pairs if os.path.dirname(paths[0]) == place)
            raise UserError(
                f"{printable(place)}: {count} of {sizes[place]} {text} ({some(example)}): "
                "move those that are not images of the class out of the data set's folder"
            )
    return [f"{paired.total()} {text}: {some([path for paths in pairs for path in paths])}"]


def some(paths: Sequence[str], count: int = 5) -> str:
    """The first paths, to be shown."""
    return ", ".join([*map(printable, paths[:count]), *["..."] * (len(paths) > count)])


def class_name(folder: str) -> str:
    """The name of a class, from that of its folder: the same for each system's way to write it."""
    return unicodedata.normalize("NFC", printable(folder))


class DataFolder:
    """A data set in a folder. Nothing is read before it is asked for.

    Args:
        folder: contains a folder per subset or, with `split`, the classes' folders
        split: shares of training, validation and test
        classes: names of the classes in the order of their numbers; by default those of the folders
            with training images, sorted
        seed: decides which file is in which part of the split
    """

    def __init__(
        self,
        folder: Path,
        split: tuple[float, float, float] | None,
        classes: list[str] | None,
        seed: int,
    ):
        self.folder, self.split, self.seed = folder, split, seed
        self.given = None if classes is None else list(map(class_name, classes))
        if self.given is not None and not 0 < len(set(self.given)) == len(self.given):
            raise UserError("data_loader.args.classes must name one class or more, each once")
        self._found: dict[Path, Found] = {}

    @functools.cached_property
    def subsets(self) -> dict[str, Path]:
        """The folder of each subset that there is. Raises UserError if two mean the same."""
        if self.split:
            shares = zip(SUBSETS, self.split, strict=True)
            return {subset: self.folder for subset, share in shares if share > 0}
        folders: dict[str, Path] = {}
        for name in _subfolders(self.folder):
            subset = NAMES.get(name.lower(), "")
            if subset in folders:
                one = folders[subset].name
                raise UserError(f"{self.folder} contains {one} and {name}: which is for {subset}?")
            folders |= {subset: self.folder / name} if subset else {}
        return folders

    @functools.cached_property
    def classes(self) -> list[str]:
        """Names of the classes; their places are the class numbers. Raises UserError."""
        if self.given is not None:
            return self.given
        if names := sorted(name for name, filled in self._labels("train").items() if filled):
            return names
        folder = self.place("train")
        raise UserError(f"{folder} contains no folders with images; it should have one per class")

    def files(self, subset: str) -> tuple[list[File], list[str], list[str]]:
        """The subset's image files, the paths of its other files, and sentences for the user.

        Raises UserError if its folders are not the classes.
        """
        found, place = self._find(subset), self.place(subset)
        self._compare(subset)
        numbers = {name: number for number, name in enumerate(self.classes)}
        files, outside, start = [], [], len(os.path.join(place, ""))
        for path in found.images:
            name = path[start:].replace(os.sep, "/")
            folder, inside, _ = name.partition("/")
            if not inside:
                outside.append(path)
            elif self.split is None:
                label = class_name(folder)
                files.append(File(path, f"{place.name}/{name}", label, numbers[label]))
            elif self._part_of(name) == subset:
                label = class_name(folder)
                files.append(File(path, name, label, numbers[label]))
        notes = list(found.notes)
        if outside:
            notes.append(f"{len(outside)} images are in no class's folder: {some(outside)}")
        if empty := [name for name, filled in self._labels(subset).items() if not filled]:
            notes.append(f"{place} contains folders without images: {', '.join(empty)}")
        if not self.split:
            others = [name for name in _subfolders(self.folder) if name.lower() not in NAMES]
            notes += [f"not used in {self.folder}: {some(others)}"] if others else []
        return files, found.ignored, notes

    def place(self, subset: str) -> Path:
        """The folder of a subset. Raises UserError if there is none."""
        folder = self.folder if self.split else self.subsets.get(subset, self.folder / subset)
        if folder.is_dir():
            return folder
        hint = ""
        if not self.subsets and _subfolders(self.folder):
            hint = '; if data_dir contains the classes\' folders, set "split": [0.8, 0.1, 0.1]'
        raise UserError(f"data_loader.args.data_dir: there is no folder {folder}{hint}")

    def _find(self, subset: str) -> Found:
        place = self.place(subset)
        if place not in self._found:
            self._found[place] = find_files(place)
        return self._found[place]

    def _labels(self, subset: str) -> dict[str, bool]:
        """The class names of the subset's folders, and whether there are images in them."""
        found, place = self._find(subset), self.place(subset)
        start = len(os.path.join(place, ""))
        filled = {path[start:].partition(os.sep)[0] for path in found.images}
        names = {class_name(folder): folder in filled for folder in found.folders}
        if len(names) < len(found.folders):
            twice = collections.Counter(map(class_name, found.folders)).most_common(1)[0][0]
            raise UserError(
                f"{place} contains {twice} twice, in two ways to write it: join the two folders"
            )
        subsets = [name for name in names if names[name] and name.lower() in NAMES]
        if subsets and self.split and self.given is None:
            raise UserError(
                f"data_loader.args.split: {place} is already split into {' and '.join(subsets)}; "
                "if these are classes, set data_loader.args.classes"
            )
        return names

    def _compare(self, subset: str) -> None:
        """Raises UserError if the subset has other classes, or the training images not all."""
        labels, place = self._labels(subset), self.place(subset)
        new = [name for name, filled in labels.items() if filled and name not in self.classes]
        missing = ", ".join(name for name in self.classes if name not in labels)
        known = "data_loader.args.classes (the config's or the checkpoint's) does not name"
        if self.given is None:
            known = f"{self.place('train')} has no images of"
        if new:
            forms = (unicodedata.normalize("NFKC", name) for name in new)
            near = "".join(did_you_mean(name, self.classes) for name in forms)
            lacks = f"; it lacks {missing}" if missing else ""
            raise UserError(f"{place} contains {', '.join(new)}, which {known}{near}{lacks}")
        if missing and subset == "train":
            raise UserError(f"{place} lacks {missing} of data_loader.args.classes")

    def _part_of(self, name: str) -> str:
        # From the name alone: with its rank among all files, a new file would move others.
        place = derive_seed(self.seed, "part", name) / 2**63
        return SUBSETS[int(np.searchsorted(np.cumsum(self.split)[:2], place, side="right"))]


def _subfolders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted, without hidden ones; none if it is no folder."""
    if not folder.is_dir():
        return []
    entries = [entry for entry in os.scandir(folder) if os.path.isdir(entry.path)]
    names = sorted(entry.name for entry in entries)
    return [name for name in names if not name.startswith(".") and name.lower() not in JUNK]
