"""Which files belong to a data set, to which subset and to which class.

`find_files` is the one rule for training, tests and predictions.
"""

import collections
import copy
import functools
import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from base.parts import share_out
from data_loader.images import image_suffixes
from data_loader.index import remember_parts, without_collection
from utils.config.lookup import did_you_mean
from utils.engine.randomness import derive_seed
from utils.errors import UserError
from utils.files import printable

SUBSETS = ("train", "val", "test")
NAMES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
NAMES |= dict(zip(SUBSETS, SUBSETS, strict=True))  # of folders in lower case -> subset
SEPARATOR = "|"  # of the classes of one image
SHOWN = 10  # unknown classes for which others are suggested
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
    """

    path: str
    name: str
    labels: list[str]
    target: int | list[int]

    @property
    def label(self) -> str:
        return SEPARATOR.join(self.labels)


class Strings(Sequence):
    """Texts in one piece of memory. As many objects would take several times as much, and a worker
    copies the memory of each that it looks at, as Python counts the references to it.
    """

    def __init__(self, texts: Iterable[str]):
        # surrogates stand for bytes that are not UTF-8
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self.ends = np.cumsum([0, *map(len, encoded)])
        self.content = b"".join(encoded)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        start, end = self.ends[index], self.ends[index + 1]
        return self.content[start:end].decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        ends, content = self.ends.tolist(), self.content
        return (
            content[start:end].decode("utf-8", "surrogatepass")
            for start, end in itertools.pairwise(ends)
        )


class Files(Sequence):
    """Image files of a data set: a sequence of `File`, each made when it is asked for.

    Args:
        folder: where the names begin, with a separator at its end
        names: of all files
        combinations: of labels that occur
        labels: place of each file's labels in these (N,)

    Attributes:
        rows: the names that belong to it, in order
        targets: of each combination
    """

    def __init__(
        self,
        folder: str,
        names: Strings,
        combinations: list[list[str]],
        labels: np.ndarray,
    ):
        self.folder, self.names = folder, names
        self.combinations, self.labels = combinations, labels
        self.rows = np.arange(len(names))
        self.targets: list[int | list[int]] = [0] * len(combinations)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | slice) -> "File | Files":
        if isinstance(index, slice):
            return self.take(index)
        row = self.rows[index]
        label, name = self.labels[row], self.names[row]
        return File(self.path_at(row), name, self.combinations[label], self.targets[label])

    def take(self, chosen: np.ndarray | slice) -> "Files":
        """Those at these places, or for which `chosen` (N,) is True."""
        taken = copy.copy(self)
        taken.rows = self.rows[chosen]
        return taken

    def numbered(self, targets: list[int | list[int]]) -> "Files":
        """The same with the targets of each combination of labels."""
        numbered = copy.copy(self)
        numbered.targets = targets
        return numbered

    def each_target(self) -> list[int | list[int]]:
        return [self.targets[label] for label in self.labels[self.rows].tolist()]

    def paths(self) -> Iterator[str]:
        return map(self.path, self.each_name())

    def path_at(self, row: int) -> str:
        """The path of the file whose name is in this row."""
        return self.path(self.names[row])

    def each_name(self) -> Iterator[str]:
        if len(self.rows) == len(self.names) and (np.diff(self.rows) == 1).all():
            return iter(self.names)
        return map(self.names.__getitem__, self.rows.tolist())

    def each_label(self) -> Iterator[str]:
        labels = [SEPARATOR.join(labels) for labels in self.combinations]
        return map(labels.__getitem__, self.labels[self.rows].tolist())

    def counts(self) -> dict[str, int]:
        """How many images each class has that has any."""
        totals: dict[str, int] = collections.Counter()
        sizes = np.bincount(self.labels[self.rows], minlength=len(self.combinations)).tolist()
        for labels, size in zip(self.combinations, sizes, strict=True):
            totals.update(dict.fromkeys(labels, size) if size else {})
        return totals

    def path(self, name: str) -> str:
        """The path of the file of this name."""
        is_absolute = name[0] in "/\\" or name[1:2] == ":"  # as os.path.isabs, in no time
        name = name.removeprefix("./").replace("/", os.sep)
        return name if is_absolute else self.folder + name


class Paths(Sequence):
    """The path of each of some files, as it is shown."""

    def __init__(self, files: Files):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> str:
        return printable(self.files[index].path)


def find_files(folder: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The images below `folder`: their paths by the folder in `folder` that they are in, sorted as
    torchvision does ("" for those in no folder), and sentences about what was left out.

    Hidden files and folders are left out, and folders that a system made. Links are followed, but
    no folder is read twice. Raises UserError if there are masks among the images.
    """
    images, ignored, left_out = {"": []}, [], []
    suffixes = {suffix.removeprefix(".") for suffix in image_suffixes()}
    # a link to a folder above would lead to this one again, and to its neighbours
    seen = {str(parent) for parent in folder.resolve().parents}
    waiting, links, odd, paired = [(str(folder), "")], [], [], []
    while waiting or links:
        links.sort(reverse=True)  # last, as their images may be reached without them
        place, top = (waiting or links).pop()
        if (real := os.path.realpath(place)) in seen:
            left_out.append(place)
            continue
        seen.add(real)
        names = []
        for entry in os.scandir(place):
            name, is_link = entry.name, entry.is_symlink()
            # the entry of a link to itself raises errors
            is_folder = os.path.isdir(entry) if is_link else entry.is_dir()
            if name.startswith(".") or name.lower() in JUNK:
                left_out += [entry.path] * is_folder
            elif is_folder:
                images.setdefault(top or name, [])
                (links if is_link else waiting).append((entry.path, top or name))
            elif is_link or entry.is_file():  # a named pipe would never end
                fits = name.rpartition(".")[2].lower() in suffixes and "." in name
                names.append(name) if fits else ignored.append(entry.path)
        names.sort()
        images[top].append((place, names))
        odd += [path for name in names if not name.isprintable()
                and printable(path := os.path.join(place, name)) != path]  # fmt: skip
        paired += _with_partners(place, names)
    found = {
        top: [
            start + name
            for place, names in sorted(images[top])
            for start in [os.path.join(place, "")]
            for name in names
        ]
        for top in sorted(images)
    }
    notes = {
        "folders left out (hidden, made by a system, or reached before)": left_out,
        "files ignored, as their names are not those of images": ignored,
        "paths are not UTF-8, and shown as": odd,
        "images have partners of the same name, as masks have": paired,
    }
    return found, [f"{len(v)} {text}: {first_few(sorted(v))}" for text, v in notes.items() if v]


def _with_partners(place: str, names: list[str]) -> list[str]:
    """The images of a folder with others of the same name: x.jpg and x.png, or x_mask.jpg.

    Raises UserError if such images are most of the folder: training on masks would look like
    success. A few may be a coincidence.
    """
    stems = [name.lower().rpartition(".")[0] for name in names]
    if any(stem.endswith("mask") for stem in stems):
        stems = [re.sub(r"[-_. ]?mask$", "", stem) for stem in stems]
    if len(counts := collections.Counter(stems)) == len(stems):
        return []
    paths = [os.path.join(place, name) for name in names]
    found = [path for path, stem in zip(paths, stems, strict=True) if counts[stem] > 1]
    if 2 * len(found) > len(stems):
        raise UserError(
            f"{printable(place)}: {len(found)} of {len(stems)} images have partners of the "
            f"same name ({first_few(found)}): move masks, and whatever else is not an image of "
            "the class, out of the data set"
        )
    return found


def first_few(paths: Sequence[str], count: int = 5) -> str:
    """The first paths, to be shown."""
    return ", ".join([*map(printable, paths[:count]), *["..."] * (len(paths) > count)])


def class_name(folder: str) -> str:
    """The name of a class, from that of its folder: the same for each system's way to write it."""
    return unicodedata.normalize("NFC", printable(folder))


class Found(NamedTuple):
    """The images of a subset, the classes without any, and sentences for the user."""

    files: Files
    empty: list[str]
    notes: list[str]


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
        self._found: dict[Path | str, Found] = {}

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
        classes = self.given or sorted(self.find("train").files.counts())
        if classes:
            return classes
        folder = self.place("train")
        raise UserError(f"{folder} contains no folders with images; it should have one per class")

    def files(self, subset: str) -> tuple[Files, list[str]]:
        """The subset's image files, and sentences for the user.

        Raises UserError if its folders are not the classes, or for training lack one.
        """
        found, place = self.find(subset), self.place(subset)
        numbers = {name: number for number, name in enumerate(self.classes)}
        counts = found.files.counts()
        new = [name for name in counts if name not in numbers]
        present = {*counts, *found.empty}
        missing = ", ".join(name for name in numbers if name not in present)
        lacks = f"it lacks {missing}" if missing else ""
        if new:
            source = "data_loader.args.classes (the config's or the checkpoint's) does not name"
            source = f"{self.place('train')} has no images of" if self.given is None else source
            # the full-width letters of Japanese keyboards as plain ones
            plain = [unicodedata.normalize("NFKC", name) for name in new[:SHOWN]]
            near = "".join(did_you_mean(name, numbers) for name in plain)
            text = f"contains {', '.join(new)}, which {source}{near}{lacks and '; '}{lacks}"
            raise UserError(f"{place} {text}")
        if missing and subset == "train":
            raise UserError(f"{place} must have all of data_loader.args.classes; {lacks}")
        combinations = found.files.combinations
        targets: list[int | list[int]] = [
            numbers.get(labels[0], 0) for labels in combinations if labels
        ]
        if self.is_multi_label:
            targets = [[int(name in labels) for name in numbers] for labels in combinations]
        files = found.files.numbered(targets)
        if self.split is not None:
            files = files.take(self._part_of_each == SUBSETS.index(subset))
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

    @without_collection
    def _search(self, place: Path) -> Found:
        folders, notes = find_files(place)
        loose, names = folders.pop(""), collections.Counter(map(class_name, folders))
        if twice := [name for name, count in names.items() if count > 1]:
            raise UserError(f"{place} contains {twice[0]} twice, written in two ways: join them")
        start = len(os.path.join(place, "")) - (0 if self.split else len(place.name) + 1)
        paths = [path for part in folders.values() for path in part]
        files = Files(
            paths[0][:start] if paths else "",
            Strings(path[start:].replace(os.sep, "/") for path in paths),
            [[class_name(folder)] for folder in folders],
            np.repeat(np.arange(len(folders)), [len(part) for part in folders.values()]),
        )
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

    @functools.cached_property
    def _part_of_each(self) -> np.ndarray:
        """The part of each file of the folder, as its place in SUBSETS (N,)."""
        names = self.find("train").files.each_name()
        if self.stratify or self.is_grouped:
            return np.array([self._parts[name] for name in names])
        # From the name alone: with its rank among all files, a new file would move others.
        places = np.array([derive_seed(self.seed, "part", name) / 2**63 for name in names])
        return np.searchsorted(np.cumsum(self.split)[:2], places, side="right")


def _subfolders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted, without hidden ones; none if it is not a folder."""
    names = [entry.name for entry in folder.glob("[!.]*") if entry.is_dir()]
    return sorted(name for name in names if name.lower() not in JUNK)
