"""Classes from a table: the loader serves what it serves for the same images in folders, and a
fault is named by its line.
"""

import csv

import pytest
import torch
from sklearn.preprocessing import MultiLabelBinarizer

from data_loader.image_folder import ImageFolderDataLoader
from tests.conftest import save_images
from utils.errors import UserError


def loader(folder, **arguments):
    settings = {"image_size": 20, "batch_size": 4, "cache": None}
    return ImageFolderDataLoader(str(folder), **settings | arguments)


@pytest.fixture
def folder(tmp_path):
    """NG/ and OK/ with images of 20 x 24 pixels."""
    save_images(tmp_path / "parts", {"NG": 6, "OK": 10})
    return tmp_path / "parts"


def images_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.png"))


def write(folder, rows, header="path,label", name="labels.csv", encoding="utf-8"):
    lines = [header, *(",".join(row) for row in rows)]
    (folder / name).write_text("\n".join(lines) + "\n", encoding=encoding)
    return name


def by_folder(folder):
    return [(name, name.split("/")[0]) for name in images_in(folder)]


@pytest.mark.parametrize("settings", [{}, {"split": [0.5, 0.25, 0.25], "stratify": True}])
def test_the_same_images_as_from_folders(folder, tmp_path, settings):
    write(folder, by_folder(folder))
    if not settings:
        (tmp_path / "whole").mkdir()
        (tmp_path / "whole" / "train").symlink_to(folder, target_is_directory=True)
    plain = loader(folder if settings else tmp_path / "whole", **settings)
    table = loader(folder, labels="labels.csv", **settings)
    assert table.classes == plain.classes == ["NG", "OK"]
    for subset in ("train", "val", "test") if settings else ("train",):
        ours, theirs = table.for_subset(subset), plain.for_subset(subset)
        assert len(ours.samples) == len(theirs.samples) > 0
        for one, other in zip(ours, theirs, strict=True):
            assert all(map(torch.equal, one, other))


def test_subsets_of_the_table(folder):
    names = images_in(folder)
    parts = ["Train", "valid", "test", "training"]  # as people write them
    rows = [(name, name[:2], parts[number % 4]) for number, name in enumerate(names)]
    write(folder, rows, "file;class;split".replace(";", ","))
    whole = loader(folder, labels="labels.csv")
    for subset, numbers in (("train", (0, 3)), ("val", (1,)), ("test", (2,))):
        wanted = [name for place, name in enumerate(names) if place % 4 in numbers]
        found = [path[len(str(folder)) + 1 :] for path in whole.for_subset(subset).paths]
        assert sorted(found) == wanted
    assert whole.has_validation
    with pytest.raises(UserError, match="names the subsets itself"):
        loader(folder, labels="labels.csv", split=[0.8, 0.1, 0.1]).paths  # noqa: B018


def test_groups_of_the_table_are_not_divided(tmp_path):
    save_images(tmp_path, {"NG": 20, "OK": 20})
    lots = {name: f"lot{number // 2 % 10}" for number, name in enumerate(images_in(tmp_path))}
    rows = [(name, name[:2], lot) for name, lot in lots.items()]
    write(tmp_path, rows, "path,label,group")
    whole = loader(tmp_path, labels="labels.csv", split=[0.6, 0.2, 0.2])
    parts = [
        {lots[path[len(str(tmp_path)) + 1 :]] for path in whole.for_subset(subset).paths}
        for subset in ("train", "val", "test")
    ]
    assert [len(part) for part in parts] == [6, 2, 2]
    assert not parts[0] & parts[1] | parts[1] & parts[2] | parts[0] & parts[2]


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".csv", ";"), (".tsv", "\t")])
def test_tables_as_spreadsheets_write_them(folder, suffix, separator):
    with open(folder / f"table{suffix}", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=separator).writerows([("Path", "Label"), *by_folder(folder)])
    found = loader(folder, labels=f"table{suffix}")
    assert [path[len(str(folder)) + 1 :] for path in found.paths] == images_in(folder)


def test_paths_written_on_windows(folder):
    write(folder, [(name.replace("/", "\\"), label) for name, label in by_folder(folder)])
    assert len(loader(folder, labels="labels.csv").samples) == 16


FAULTS = {
    "no label column": ("path,kind", ["NG/0.png,NG"], "line 1: .* label is missing: path,kind"),
    "cells": ("path,label", ["NG/0.png,NG", "NG/1.png"], "line 3: 1 cells, the header has 2"),
    "no label": ("path,label", ["NG/0.png,NG", "NG/1.png, "], "line 3: NG/1.png has no label"),
    "no path": ("path,label", [",NG"], "line 2: no path"),
    "twice": ("path,label", ["NG/0.png,NG", "NG/0.png,OK"], "line 3: NG/0.png is in line 2, too"),
    "subset": ("path,label,subset", ["NG/0.png,NG,dev"], 'line 2: the subset "dev" should be'),
    "lacks subset": ("path,label,subset", ["NG/0.png,NG,train", "NG/1.png,NG,"],
                     "line 3: NG/1.png has no subset"),
    "no rows": ("path,label", [], "names no file"),
    "other folder": ("path,label", ["x/0.png,NG"], "names no file .*: there is no .*x/0.png"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_by_its_line(folder, name):
    header, lines, message = FAULTS[name]
    (folder / "labels.csv").write_text("\n".join([header, *lines]), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        loader(folder, labels="labels.csv").check()


def test_many_faults_are_counted(folder):
    write(folder, [("", "NG")] * 25)
    with pytest.raises(UserError, match=r"line 11: no path\n  and 15 more"):
        loader(folder, labels="labels.csv").check()


def test_a_table_that_is_no_text(folder):
    (folder / "labels.csv").write_bytes("path,label\nNG/不良.png,NG\n".encode("shift-jis"))
    with pytest.raises(UserError, match='not UTF-8; save it as "CSV UTF-8"'):
        loader(folder, labels="labels.csv").check()
    with pytest.raises(UserError, match=r"data_loader.args.labels: .*none.csv: No such file"):
        loader(folder, labels="none.csv").check()


def test_files_that_are_not_there_are_left_out_and_said(folder):
    write(folder, [*by_folder(folder), ("NG/gone.png", "NG")])
    report = "\n".join(loader(folder, labels="labels.csv").check())
    assert "16 images (NG 6, OK 10)" in report
    assert "1 files of" in report
    assert "not there: line 18" in report


NAMES = {"crack": 1, "dent": 2, "stain": 4}
LABELS = [[name for name, bit in NAMES.items() if number & bit] for number in range(24)]


@pytest.fixture
def defects(tmp_path):
    """24 images with any of crack, dent, stain, and a table of them."""
    save_images(tmp_path / "defects", {"all": 24})
    rows = zip(images_in(tmp_path / "defects"), map("|".join, LABELS), strict=True)
    write(tmp_path / "defects", rows)
    return tmp_path / "defects"


def test_several_labels_of_an_image(defects):
    whole = loader(defects, labels="labels.csv")
    expected = MultiLabelBinarizer()
    numbers = expected.fit_transform(LABELS)
    assert whole.classes == list(expected.classes_)
    targets = torch.cat([targets for _, targets in whole.for_subset("train")])
    assert targets.tolist() == numbers.tolist()
    assert "crack 12, dent 12, stain 12" in whole.check()[0]
    with pytest.raises(UserError, match="balance: only for images of one class"):
        loader(defects, labels="labels.csv", balance="sampler").paths  # noqa: B018


def test_several_labels_are_trained(defects, digits, train):
    arguments = {"data_dir": str(defects), "labels": "labels.csv", "image_size": 16}
    arguments |= {"split": [0.5, 0.25, 0.25], "stratify": True, "batch_size": 4, "num_workers": 0}
    changes = {
        "arch": {"type": "CifarResNet", "args": {"depth": 8}},
        "data_loader": {"type": "ImageFolderDataLoader", "args": arguments},
        "task": "MultiLabelTask",
        "loss": "binary_cross_entropy_with_logits",
        "metrics": [{"type": "MultilabelAveragePrecision", "args": {"num_labels": 3}}],
        "trainer.monitor": "min val_loss",
        "trainer.epochs": 1,
    }
    assert (train(digits(changes)) / "model_best.pth").exists()
