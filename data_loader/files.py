"""Which files belong to a data set, to which subset and to which class.

`find_files` is the one rule for training, tests and predictions.
"""

import collections
import functools
import itertools
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from base.parts import share_out
from data_loader.images import image_suffixes
from data_loader.index import Record, remember_parts
from utils.config.lookup import did_you_mean
from utils.engine.randomness import derive_seed
from utils.errors import UserError
from utils.files import printable

SUBSETS = ("train", "val", "test")
NAMES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
NAMES |= dict(zip(SUBSETS, SUBSETS, strict=True))  # of folders in lower case -> subset
SEPARATOR = "|"  # of the classes of one image
# folders that Windows, macOS and network disks make
JUNK = {"$recycle.bin", "recycler", "system volume information", "lost+found", "__macosx",
        "@eadir", "@recycle", "#recycle", "#snapshot", "__pycache__"}  # fmt: skip


class File(NamedTuple):
    """An image file of a data set.

    Attributes:
        path: as the system needs it (`printable` shows it)
        name: its path from the data set's folder, with /
        labels: the names of its classes
        target: the number of its class; where an image may have several classes, a list of 0 and 1,
            one for each class
        record: what is known of its content
        subset, group, line: what a table says of it, and where
    """

    path: str
    name: str
    labels: list[str]
    target: int | list[int] = 0
    record: Record = Record(-1, -1, "", "")
    subset: str = ""
    group: str = ""
    line: int = 0

    @property
    def label(self) -> str:
        return SEPARATOR.join(self.labels)


def find_files(folder: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The images below `folder`: their paths by the folder in `folder` that they are in, sorted as
    torchvision does ("" for those in no folder), and sentences about what was left out.

    Hidden files and folders are left out, and folders that a system made. Links are followed, but
    no folder is read twice. Raises UserError if there are masks among the images.
    """
    images, ignored, left_out, suffixes = {"": []}, [], [], image_suffixes()
    # a link to a folder above would lead to this one again, and to its neighbours
    seen = {str(parent) for parent in folder.resolve().parents}
    waiting, links = [(str(folder), "")], []
    while waiting or links:
        links.sort(reverse=True)  # last, as their images may be reached without them
        place, top = (waiting or links).pop()
        if (real := os.path.realpath(place)) in seen:
            left_out.append(place)
            continue
        seen.add(real)
        for entry in os.scandir(place):
            # the entry of a link to itself raises errors
            is_folder = os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()
            if entry.name.startswith(".") or entry.name.lower() in JUNK:
                left_out += [entry.path] * is_folder
            elif is_folder:
                images.setdefault(top or entry.name, [])
                (links if entry.is_symlink() else waiting).append((entry.path, top or entry.name))
            elif entry.is_symlink() or entry.is_file():  # a named pipe would never end
                named = os.path.splitext(entry.name)[1].lower() in suffixes
                (images[top] if named else ignored).append(entry.path)
    images = {name: sorted(images[name], key=os.path.split) for name in sorted(images)}
    paths = [path for part in images.values() for path in part]
    notes = {
        "folders left out (hidden, made by a system, or reached before)": left_out,
        "files ignored, as their names are not those of images": ignored,
        "paths are not UTF-8, and shown as": [path for path in paths if printable(path) != path],
        "images have partners of the same name, as masks have": _with_partners(paths),
    }
    return images, [f"{len(v)} {text}: {first_few(sorted(v))}" for text, v in notes.items() if v]


def _with_partners(paths: list[str]) -> list[str]:
    """The images with others of the same name beside them: x.jpg and x.png, or x_mask.jpg.

    `paths` are in the order of their folders. Raises UserError if such images are most of a folder:
    training on masks would look like success. A few may be a coincidence.
    """
    paired = []
    for place, images in itertools.groupby(paths, os.path.dirname):
        names = {path: os.path.splitext(os.path.basename(path).lower())[0] for path in images}
        stems = {path: re.sub(r"[-_. ]?mask$", "", name) for path, name in names.items()}
        counts = collections.Counter(stems.values())
        found = [path for path, stem in stems.items() if counts[stem] > 1]
        if 2 * len(found) > len(stems):
            raise UserError(
                f"{printable(place)}: {len(found)} of {len(stems)} images have partners of the "
                f"same name ({first_few(found)}): move masks, and whatever else is not an image of "
                "the class, out of the data set"
            )
        paired += found
    return paired


def first_few(paths: Sequence[str], count: int = 5) -> str:
    """The first paths, to be shown."""
    return ", ".join([*map(printable, paths[:count]), *["..."] * (len(paths) > count)])


def class_name(folder: str) -> str:
    """The name of a class, from that of its folder: the same for each system's way to write it."""
    return unicodedata.normalize("NFC", printable(folder))


class Found(NamedTuple):
    """The images of a subset, the classes without any, and sentences for the user."""

    files: list[File]
    empty: list[str]
    notes: list[str]

    def counts(self) -> dict[str, int]:
        """How many images each class has that has any."""
        return collections.Counter(label for file in self.files for label in file.labels)


@dataclass(eq=False)
class DataFolder:
    """A data set in a folder. Nothing is read before it is asked for.

    Args:
        folder: contains a folder per subset or, with `split`, the classes' folders
        split: shares of training, validation and test
        given: names of the classes in the order of their numbers; by default those of the folders
            with training images, sorted
        seed: decides which file is in which part of the split
        stratify: divide each class by the shares, and remember the part of each file
        group: regular expression for the part of a file's name that names its lot: with `split` a
            lot is in one part
    """

    folder: Path
    split: Sequence[float] | None
    given: list[str] | None
    seed: int
    stratify: bool = False
    group: str | None = None

    is_multi_label = False  # whether an image may have several classes

    def __post_init__(self) -> None:
        try:
            self._pattern = None if self.group is None else re.compile(self.group)
        except re.error as error:
            problem = f'data_loader.args.group: "{self.group}" is not a regular expression'
            raise UserError(f"{problem}: {error}") from None
        if self.given is not None:
            self.given = list(map(class_name, self.given))
            if not 0 < len(set(self.given)) == len(self.given):
                raise UserError("data_loader.args.classes must name one class or more, each once")
        self._found: dict[Path, Found] = {}

    @functools.cached_property
    def subsets(self) -> dict[str, Path]:
        """The folder of each subset that there is. Raises UserError if two mean the same."""
        if self.split:
            parts = zip(SUBSETS, self.split, strict=True)
            return {subset: self.folder for subset, share in parts if share > 0}
        folders: dict[str, Path] = {}
        for name in filter(lambda name: name.lower() in NAMES, _subfolders(self.folder)):
            subset = NAMES[name.lower()]
            other = folders.setdefault(subset, self.folder / name).name
            if other != name:
                raise UserError(f"{self.folder} has two {subset} parts, {other} and {name}")
        return folders

    @functools.cached_property
    def classes(self) -> list[str]:
        """Names of the classes; their places are the class numbers. Raises UserError."""
        classes = self.given or sorted(self.find("train").counts())
        if classes:
            return classes
        folder = self.place("train")
        raise UserError(f"{folder} contains no folders with images; it should have one per class")

    def files(self, subset: str) -> tuple[list[File], list[str]]:
        """The subset's image files, and sentences for the user.

        Raises UserError if its folders are not the classes, or for training lack one.
        """
        found, place, known = self.find(subset), self.place(subset), self.classes
        counts = found.counts()
        new = [name for name in counts if name not in known]
        present = {*counts, *found.empty}
        missing = ", ".join(name for name in known if name not in present)
        lacks = f"it lacks {missing}" if missing else ""
        if new:
            source = "data_loader.args.classes (the config's or the checkpoint's) does not name"
            source = f"{self.place('train')} has no images of" if self.given is None else source
            # the full-width letters of Japanese keyboards as plain ones
            near = "".join(did_you_mean(unicodedata.normalize("NFKC", n), known) for n in new)
            text = f"contains {', '.join(new)}, which {source}{near}{lacks and '; '}{lacks}"
            raise UserError(f"{place} {text}")
        if missing and subset == "train":
            raise UserError(f"{place} must have all of data_loader.args.classes; {lacks}")
        files = []
        for file in found.files:
            if self.split is None or self._part_of(file.name) == subset:
                several = [int(label in file.labels) for label in known]
                target = several if self.is_multi_label else several.index(1)
                files.append(file._replace(target=target))
        return files, found.notes

    def place(self, subset: str) -> Path:
        """The folder of a subset. Raises UserError if there is none."""
        folder = self.folder if self.split else self.subsets.get(subset, self.folder / subset)
        if folder.is_dir():
            return folder
        hint = '; if data_dir contains the classes\' folders, set "split": [0.8, 0.1, 0.1]'
        hint = "" if self.subsets or not _subfolders(self.folder) else hint
        raise UserError(f"data_loader.args.data_dir: there is no folder {folder}{hint}")

    def find(self, subset: str) -> Found:
        """The images in the folder of a subset: with `split`, those of all subsets."""
        place = self.place(subset)
        if place not in self._found:
            self._found[place] = self._search(place)
        return self._found[place]

    def _search(self, place: Path) -> Found:
        folders, notes = find_files(place)
        loose, names = folders.pop(""), collections.Counter(map(class_name, folders))
        if twice := [name for name, count in names.items() if count > 1]:
            raise UserError(f"{place} contains {twice[0]} twice, written in two ways: join them")
        start = len(os.path.join(place, "")) - (0 if self.split else len(place.name) + 1)
        files = [
            File(path, path[start:].replace(os.sep, "/"), [class_name(folder)])
            for folder, paths in folders.items()
            for path in paths
        ]
        empty = [class_name(folder) for folder, paths in folders.items() if not paths]
        subsets = [name for name in names if name not in empty and name.lower() in NAMES]
        if subsets and self.split and self.given is None:
            raise UserError(
                f"data_loader.args.split: {place} is already split into {' and '.join(subsets)}; "
                "if these are classes, set data_loader.args.classes"
            )
        others = [] if self.split else _subfolders(self.folder)
        more = {
            f"images are in no class's folder of {place}": loose,
            f"folders of {place} contain no images": empty,
            f"folders of {self.folder} are not used": [n for n in others if n.lower() not in NAMES],
        }
        notes += [
            f"{len(names)} {text}: {first_few(names)}" for text, names in more.items() if names
        ]
        return Found(files, empty, notes)

    @property
    def is_grouped(self) -> bool:
        """Whether files belong to lots, which are not divided."""
        return self.group is not None

    def group_of(self, name: str) -> str:
        """The lot of a file, by its name; the name if the pattern does not occur in it."""
        found = self._pattern and self._pattern.search(name.rpartition("/")[2])
        return (found[1] if found.re.groups else found[0]) if found else name

    @functools.cached_property
    def _parts(self) -> dict[str, int]:
        """The part of each file by name. Those of files that were there before stay."""
        files = [
            (file.name, label, self.group_of(file.name))
            for file in self.find("train").files
            for label in file.labels or [""]
        ]
        settings = [self.seed, list(self.split), self.group or self.is_grouped or None]
        share = functools.partial(share_out, files, self.split, self.seed)
        return remember_parts(self.folder, settings, share)

    def _part_of(self, name: str) -> str:
        if self.stratify or self.is_grouped:
            return SUBSETS[self._parts[name]]
        # From the name alone: with its rank among all files, a new file would move others.
        place = derive_seed(self.seed, "part", name) / 2**63
        return SUBSETS[int(np.searchsorted(np.cumsum(self.split)[:2], place, side="right"))]


def _subfolders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted, without hidden ones; none if it is not a folder."""
    names = [entry.name for entry in folder.glob("[!.]*") if entry.is_dir()]
    return sorted(name for name in names if name.lower() not in JUNK)
