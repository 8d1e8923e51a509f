"""Which files are data, and of which class. What is expected is written down, or comes from
torchvision's ImageFolder.
"""

import os
import shutil
import unicodedata
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from data_loader.files import find_files
from data_loader.image_folder import ImageFolderDataLoader
from tests.conftest import save_images
from utils.config.config import ConfigParser
from utils.config.resolve import adopt_network
from utils.errors import UserError
from utils.files import printable, safe_name

GA = "が"  # two characters in the form of macOS
NFD = unicodedata.normalize("NFD", GA)
SHIFT_JIS = os.fsdecode("不良".encode("shift-jis"))


def image_loader(folder, **arguments):
    return ImageFolderDataLoader(
        str(folder), **({"image_size": 20, "batch_size": 8, "shuffle": False} | arguments)
    )


def image_paths(folder):
    images, _ = find_files(folder)
    return [path for paths in images.values() for path in paths]


def names(loader, folder):
    return [os.path.relpath(path, folder) for path in loader.paths]


@pytest.fixture
def folder(tmp_path):
    """train/, val/ and test/ with three classes each."""
    root = tmp_path / "parts"
    for number, subset in enumerate(("train", "val", "test")):
        save_images(root / subset, {"A": 3, "B": 4, GA: 2}, size=(8, 9 + number))
    return root


# --- classes ---------------------------------------------------------------------------------

CHANGES = {
    "added": lambda place: save_images(place, {"C": 1}),
    "removed": lambda place: shutil.rmtree(place / "A"),
    "renamed": lambda place: (place / "A").rename(place / "Scratch"),
    "other case": lambda place: (place / "A").rename(place / "a"),
    "full width": lambda place: (place / "A").rename(place / "Ａ"),
    "trailing space": lambda place: (place / "A").rename(place / "A "),
    "other form": lambda place: (place / GA).rename(place / NFD),
    "both forms": lambda place: save_images(place, {NFD: 1}),
    "empty": lambda place: (place / "C").mkdir(),
    "junk": lambda place: save_images(place, {"@eaDir": 1, ".cache": 1}),
}
NO_ERROR = ("other form", "empty", "junk")
ERRORS = {  # what the message must contain
    "added": ["contains C, which"],
    "removed": ["lacks A"],
    "renamed": ["contains Scratch, which", "lacks A"],
    "other case": ["contains a, which", 'did you mean "A"?', "lacks A"],
    "full width": ["contains Ａ, which", 'did you mean "A"?'],
    "trailing space": ["contains A , which", "lacks A"],
    "both forms": [f"contains {GA} twice"],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("subset", ["train", "val", "test"])
@pytest.mark.parametrize("classes", [None, [NFD, "B", "A"]])
def test_folders_that_are_not_the_classes_are_refused(folder, change, subset, classes):
    """A class that only validation or test lacks is reported; a changed train has other classes,
    unless the configuration or the checkpoint names them.
    """
    CHANGES[change](folder / subset)
    loader = image_loader(folder, classes=classes)
    changed = loader if subset == "train" else loader.for_subset(subset)
    given = ["A", "B", GA] if classes is None else [GA, "B", "A"]
    own_names = {"added": ["A", "B", "C", GA], "removed": ["B", GA]} | {
        "renamed": ["B", "Scratch", GA],
        "other case": ["B", "a", GA],
        "full width": ["B", GA, "Ａ"],
        "trailing space": ["A ", "B", GA],
    }
    may_lack = change == "removed" and subset != "train"
    if subset == "train" and classes is None and change in own_names:
        assert loader.classes == own_names[change]
    elif change in NO_ERROR or may_lack:
        assert changed.classes == given
        for path, target in zip(changed.paths, changed.samples.targets, strict=True):
            assert unicodedata.normalize("NFC", Path(path).parent.name) == given[target]
    else:
        with pytest.raises(UserError) as caught:
            len(changed.dataset)
        for text in ERRORS[change]:
            assert text in str(caught.value)


def test_folders_within_a_class_are_in_torchvisions_order(folder):
    for name in ("lot-2", "lot", "lot 10", "lot/inner", "lot.d"):
        save_images(folder / "train" / "A" / name, {".": 2})
    reference = ImageFolder(folder / "train")
    assert image_loader(folder).paths == [os.path.normpath(path) for path, _ in reference.samples]


def test_classes_in_another_order_number_the_same_files(folder):
    plain = image_loader(folder)
    reference = ImageFolder(folder / "train")
    assert (plain.classes, plain.samples.targets) == (reference.classes, reference.targets)
    turned = image_loader(folder, classes=[GA, "B", "A"])
    assert turned.paths == plain.paths
    assert turned.samples.targets == [2 - target for target in plain.samples.targets]
    data = [torch.cat([images for images, _ in loader]) for loader in (plain, turned)]
    assert torch.equal(*data)


def test_classes_given_make_the_training_images_unnecessary(folder):
    expected = image_loader(folder).for_subset("test").paths
    shutil.rmtree(folder / "train")
    given = {"classes": ["A", "B", GA], "normalize": {"mean": [0.5] * 3, "std": [0.2] * 3}}
    loader = image_loader(folder, **given).for_subset("test")
    assert loader.paths == expected
    assert loader.samples.targets == [0] * 3 + [1] * 4 + [2] * 2
    assert image_loader(folder, **given).split_validation().classes == ["A", "B", GA]
    for wrong in ({}, {"classes": ["A", "B", GA], "normalize": "data"}):
        with pytest.raises(UserError, match=r"no folder .*train"):
            len(image_loader(folder, **wrong).for_subset("test").dataset)


@pytest.mark.parametrize("classes", [[], ["A", "A"], [GA, NFD]])
def test_classes_given_must_differ(folder, classes):
    with pytest.raises(UserError, match="each once"):
        image_loader(folder, classes=classes)


def test_class_without_training_images_is_refused_if_others_have_some(folder):
    shutil.rmtree(folder / "train" / "A")
    (folder / "train" / "A").mkdir()
    loader = image_loader(folder)
    assert loader.classes == ["B", GA]
    with pytest.raises(UserError, match=r"contains A, which .*train has no images of"):
        len(loader.split_validation().dataset)
    # a run that has begun with this class goes on
    loader = image_loader(folder, classes=["A", "B", GA])
    assert any("train has no images of A" in line for line in loader.check())


def test_checkpoints_classes_are_adopted_unless_the_config_has_its_own(image_config, folder):
    state = {"classes": [NFD, "B", "A"], "input": {"shape": [1, 20, 20]}, "config": None}
    config = ConfigParser(
        image_config(folder) | {"test_data_loader": image_config("x")["data_loader"]}
    )
    adopted = adopt_network(config, state, arch=False)
    for section in ("data_loader", "test_data_loader"):
        assert adopted[section]["args"]["classes"] == [NFD, "B", "A"]
    assert adopted.init_obj("data_loader").classes == [GA, "B", "A"]
    own = ConfigParser(image_config(folder, classes=["A", "B", GA]))
    assert adopt_network(own, state, arch=False)["data_loader"]["args"]["classes"] == ["A", "B", GA]
    old = adopt_network(config, state | {"classes": [SHIFT_JIS]}, arch=False)
    assert old["data_loader"]["args"]["classes"] == ["不良"]
    for nothing in (None, []):
        unchanged = adopt_network(config, state | {"classes": nothing}, arch=False)
        assert "classes" not in unchanged["data_loader"]["args"]


def test_argument_classes_of_another_meaning_stays(own_code, digits):
    own_code("number", OWN_LOADER)
    config = ConfigParser(
        digits({"data_loader.type": "number.Numbered", "data_loader.args.classes": 10})
    )
    state = {"classes": ["a", "b"], "input": None, "config": None}
    assert adopt_network(config, state, arch=False)["data_loader"]["args"]["classes"] == 10


OWN_LOADER = """
from data_loader.data_loaders import DigitsDataLoader
class Numbered(DigitsDataLoader):
    def __init__(self, classes: int = 10, **kwargs):
        self.count = classes
        super().__init__(**kwargs)
"""


# --- which files -----------------------------------------------------------------------------


def link(place, target):
    place.symlink_to(target, target_is_directory=True)


LINKS = {
    "itself": lambda place: link(place / "A" / "loop", "."),
    "parent": lambda place: link(place / "A" / "loop", ".."),
    "above": lambda place: link(place / "A" / "loop", place.parent.parent),
    "another class": lambda place: link(place / "A" / "more", "../B"),
    "ring": lambda place: (
        (place / "A" / "x").mkdir(),
        link(place / "A" / "x" / "y", "../z"),
        link(place / "A" / "z", "x"),
    ),
    "to itself": lambda place: link(place / "A" / "none", "none"),
}


@pytest.mark.parametrize("kind", LINKS)
def test_no_folder_is_read_twice(folder, kind):
    expected = names(image_loader(folder), folder)
    LINKS[kind](folder / "train")
    assert names(image_loader(folder), folder) == expected
    for place, count in ((folder / "train", 9), (folder, 27), (folder / "train" / "A", 3)):
        ours = [os.path.realpath(path) for path in image_paths(place)]
        assert (
            len(ours) == len(set(ours)) == (7 if kind == "another class" and count == 3 else count)
        )


def test_links_to_other_places_are_followed_once(folder, tmp_path):
    save_images(tmp_path / "pool", {"more": 5})
    link(folder / "train" / "A" / "pool", tmp_path / "pool")
    link(folder / "train" / "B" / "pool", tmp_path / "pool")
    (folder / "train" / "B" / "single.png").symlink_to(tmp_path / "pool" / "more" / "0.png")
    shutil.rmtree(folder / "val")
    link(folder / "val", folder / "test")
    loader = image_loader(folder)
    assert [loader.samples.targets.count(number) for number in range(3)] == [8, 5, 2]
    assert len(loader.split_validation().paths) == 9
    [note] = [line for line in loader.check() if "folders left out" in line]
    assert str(folder / "train" / "B" / "pool") in note


def test_broken_links_are_bad_files(folder):
    (folder / "train" / "A" / "gone.png").symlink_to("nowhere.png")
    (folder / "train" / "A" / "ring.png").symlink_to("ring.png")
    (folder / "test" / "A" / "gone.png").symlink_to(folder / "nowhere" / "x.png")
    os.mkfifo(folder / "train" / "A" / "pipe.png")
    for cache in ("ram", "disk", None, "disk"):
        loader = image_loader(folder, cache=cache)
        left_out = [line for line in loader.check() if line.startswith("left out: ")]
        assert [os.path.basename(line.partition(": is")[0]) for line in left_out] == [
            "gone.png",
            "ring.png",
            "gone.png",
        ]
        assert "is a link to nothing" in left_out[0]
        assert len(loader.paths) == 9
    with pytest.raises(UserError, match=r"gone\.png: is a link to nothing"):
        image_loader(folder, on_bad_file="stop").check()


JUNK = ["@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "#recycle", ".git"]


@pytest.mark.parametrize("place", ["train", "train/A", "."])
def test_folders_that_systems_make_are_left_out_and_said(folder, place):
    expected = image_loader(folder)
    expected = (expected.classes, names(expected, folder))
    for name in JUNK:
        save_images(folder / place / name, {"x": 2})
    loader = image_loader(folder)
    assert (loader.classes, names(loader, folder)) == expected
    said = [line for line in loader.check() if "folders left out" in line]
    assert [line.split()[0] for line in said] == ([] if place == "." else [str(len(JUNK))])
    assert len(image_paths(folder)) == 27


def test_empty_folders_are_no_classes_and_are_said(folder):
    (folder / "train" / "C" / "deep" / "er").mkdir(parents=True)
    (folder / "train" / "D").mkdir()
    (folder / "train" / "D" / "notes.txt").write_text("no image")
    (folder / "val" / "E").mkdir()
    save_images(folder, {"spare": 1})
    Image.new("RGB", (3, 3)).save(folder / "train" / "loose.png")
    lines = image_loader(folder).check()
    assert image_loader(folder).classes == ["A", "B", GA]
    assert f"2 folders of {folder / 'train'} contain no images: C, D" in lines
    assert f"1 folders of {folder / 'val'} contain no images: E" in lines
    assert f"1 folders of {folder} are not used: spare" in lines
    loose = folder / "train" / "loose.png"
    assert f"1 images are in no class's folder of {folder / 'train'}: {loose}" in lines


@pytest.mark.parametrize("name", ["valid", "validation", "Val", "VALID", "Validation"])
def test_other_names_of_subsets_mean_the_same(folder, name):
    expected = names(image_loader(folder).split_validation(), folder / "val")
    (folder / "val").rename(folder / name)
    loader = image_loader(folder)
    assert loader.has_validation
    assert names(loader.split_validation(), folder / name) == expected
    (folder / "train").rename(folder / ("Training" if name == "Val" else "TRAIN"))
    (folder / "test").rename(folder / ("testing" if name == "Val" else "Test"))
    loader = image_loader(folder)
    assert [len(loader.for_subset(subset).paths) for subset in ("train", "val", "test")] == [9] * 3


def test_two_folders_for_one_subset_are_refused(folder):
    shutil.copytree(folder / "val", folder / "validation")
    with pytest.raises(UserError, match="has two val parts, val and validation"):
        image_loader(folder).check()


@pytest.mark.parametrize(
    "subsets", [["train", "val"], ["valid", "test"], ["Train"], ["testing", "A"], ["VALIDATION"]]
)
def test_subsets_are_never_read_as_classes(tmp_path, subsets):
    for name in subsets:
        save_images(tmp_path / name, {"NG": 2, "OK": 2})
    with pytest.raises(UserError, match="is already split into"):
        len(image_loader(tmp_path, split=[0.6, 0.2, 0.2]).dataset)
    if not any(name.lower().startswith("train") for name in subsets):
        with pytest.raises(UserError, match=r"no folder .*train$"):
            len(image_loader(tmp_path).dataset)
    # unless somebody says so: vehicles have a class "train"
    loader = image_loader(tmp_path, split=[0.6, 0.2, 0.2], classes=sorted(subsets))
    assert loader.classes == sorted(subsets)


@pytest.mark.parametrize("mask", ["{}.bmp", "{}_mask.png", "{} Mask.jpg", "{}-mask.tif"])
def test_masks_beside_their_images_are_refused(folder, mask):
    place = folder / "train" / "A"
    for image in list(place.iterdir())[1:]:
        shutil.copy(image, place / mask.format(image.stem))
    with pytest.raises(UserError, match=r"4 of 5 images have partners .*move masks"):
        len(image_loader(folder).dataset)
    with pytest.raises(UserError, match="4 of 5 images have partners"):
        find_files(folder)


def test_a_single_partner_is_said(folder):
    for subset in ("train", "val"):
        Image.new("RGB", (5, 5)).save(folder / subset / "B" / "0.gif")
    lines = [line for line in image_loader(folder).check() if "partners" in line]
    assert [line.partition(" images")[0] for line in lines] == ["2", "2"]
    assert str(folder / "train" / "B" / "0.gif") in lines[0]


# --- names that are not UTF-8 ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("良品.png".encode(), "良品.png"),
        ("良品.png".encode("cp932"), "良品.png"),
        ("ｶﾒﾗ１".encode("cp932"), "ｶﾒﾗ１"),
        ("é.png".encode("latin-1"), "\\xe9.png"),
        (b"a\x81", "a\\x81"),
        (b"a\xff", "a\\uf8f3"),
        (b"two\nlines\x1b[0m", "two\\nlines\\x1b[0m"),
        ("全角　空白".encode(), "全角　空白"),
    ],
)
def test_names_become_printable(content, shown):
    name = os.fsdecode(content)
    assert printable(name) == shown
    assert printable(f"写真/{name}/x") == f"写真/{shown}/x"
    printable(name).encode()


def test_shift_jis_names_are_shown_and_read(folder):
    for subset in ("train", "val"):
        (folder / subset / "A").rename(folder / subset / SHIFT_JIS)
        for path in list((folder / subset / SHIFT_JIS).iterdir()):
            path.rename(path.with_name(f"{SHIFT_JIS}{path.name}"))
    shutil.rmtree(folder / "test")
    for cache in ("ram", "disk", None, "disk"):
        loader = image_loader(folder, cache=cache)
        assert loader.classes == ["B", GA, "不良"]
        assert len(list(loader)) == 2
        assert loader.paths[-1] == str(folder / "train" / "不良" / "不良2.png")
        lines = loader.check()
        assert "train: 9 images (B 4, が 2, 不良 3)" in lines
        assert len([line for line in lines if "3 paths are not UTF-8" in line]) == 2
        "\n".join(lines).encode()


def test_text_that_no_file_has_becomes_printable():
    """JSON can hold lone surrogates, which stand for no byte of a file's name."""
    for name in ("\ud800", "é\x00\ud800", "\udfff不良"):
        printable(name).encode()
        safe_name(name).encode()
    assert printable("é\ud800") == "é\\ud800"
