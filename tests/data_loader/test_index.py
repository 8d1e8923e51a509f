"""The index of a data set: a later start reads only what changed, and gives the same."""

import base64
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from data_loader.image_folder import ImageFolderDataLoader
from data_loader.index import CONTENT, Record
from tests.base.test_data_loader import NumbersLoader
from tests.conftest import assert_same, save_images
from tests.data_loader.conftest import count_reads


@pytest.fixture
def folder(tmp_path):
    save_images(tmp_path / "parts" / "train", {"NG": 6, "OK": 10}, size=(50, 60))
    save_images(tmp_path / "parts" / "val", {"NG": 3, "OK": 4}, size=(30, 30))
    (tmp_path / "parts" / "train" / "OK" / "text.png").write_text("no image")
    return tmp_path / "parts"


def image_loader(folder, **arguments):
    return ImageFolderDataLoader(
        str(folder),
        **({"image_size": 12, "batch_size": 8, "cache": None, "normalize": "data"} | arguments),
    )


def index_of(folder):
    return folder.with_name(f"{folder.name}.cache") / "index.json"


def rows(folder):
    content = json.loads(index_of(folder).read_text(encoding="utf-8"))
    return {k: dict(zip(content["columns"], v, strict=True)) for k, v in content["files"].items()}


def everything(loader):
    return [loader.check(), loader.input, loader.digest, list(loader), loader.paths]


def test_index_says_what_the_files_are(folder):
    image_loader(folder).check()
    known = rows(folder)
    assert len(known) == 24
    for name, row in known.items():
        part, label, _ = name.split("/")
        stat = (folder / name).stat()
        assert (row["part"], row["label"]) == (part, label)
        assert (row["size"], row["changed"]) == (stat.st_size, stat.st_mtime_ns)
        if name == "train/OK/text.png":
            assert row["bad"] == "is not an image, or its beginning is damaged"
            continue
        assert row["bad"] is None
        pixels = np.asarray(Image.open(folder / name)).astype(np.int64)
        if part == "val":  # small enough to be read as they are
            content = np.frombuffer(base64.b64decode(row["content"]), CONTENT)[0]
            assert content["shape"].tolist() == [3, 30, 30]
            sums = [(pixels**p).sum((0, 1)).tolist() for p in (1, 2)]
            assert content["sums"].tolist() == sums
    assert list(known["val/NG/0.png"]) == list(Record._fields)


@pytest.mark.parametrize("cache", [None, "disk"])
def test_second_start_decodes_nothing_and_gives_the_same(folder, monkeypatch, cache):
    paths = count_reads(monkeypatch)
    expected = everything(image_loader(folder, cache=cache))
    assert len(paths) == 24
    paths.clear()
    written = index_of(folder).stat().st_mtime_ns
    again = everything(image_loader(folder, cache=cache))
    assert not paths
    assert_same(again, expected)
    assert index_of(folder).stat().st_mtime_ns == written
    shutil.rmtree(folder.with_name("parts.cache"))
    fresh = everything(image_loader(folder, cache="ram"))
    assert_same(fresh[1:], expected[1:])
    assert set(expected[0]) - set(fresh[0]) == {
        line for line in expected[0] if "are kept in" in line
    }


CHANGES = {
    "content": lambda place: Image.new("RGB", (60, 50), "red").save(place / "0.png"),
    "time": lambda place: os.utime(place / "0.png", (1, 1)),
    "added": lambda place: Image.new("RGB", (60, 50), "red").save(place / "new.png"),
    "removed": lambda place: (place / "0.png").unlink(),
    "renamed": lambda place: (place / "0.png").rename(place / "other.png"),
    "moved": lambda place: (place / "0.png").rename(place.parent / "OK" / "other.png"),
    "broken": lambda place: (place / "0.png").write_bytes(b"x"),
    "mended": lambda place: shutil.copy(place / "0.png", place.parent / "OK" / "text.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_what_changed_is_read_again(folder, monkeypatch, change):
    before = image_loader(folder)
    before.check()
    CHANGES[change](folder / "train" / "NG")
    paths = count_reads(monkeypatch)
    loader = image_loader(folder)
    ours = everything(loader)
    assert len(paths) == (0 if change == "removed" else 1)
    assert (loader.digest == before.digest) == (change == "time")
    names = {str(path.relative_to(folder)) for path in folder.rglob("*.png")}
    assert set(rows(folder)) == names
    shutil.rmtree(folder.with_name("parts.cache"))
    assert_same(ours, everything(image_loader(folder)))


def test_other_settings_are_other_readings(folder, monkeypatch):
    image_loader(folder).check()
    paths = count_reads(monkeypatch)
    for change in ({"image_size": 5}, {"channels": 1}):
        loader = image_loader(folder, **change)
        ours = everything(loader)
        assert len(paths) == 24
        shutil.rmtree(folder.with_name("parts.cache"))
        assert_same(ours, everything(image_loader(folder, **change)))
        paths.clear()


DAMAGES = {
    "empty": lambda text: "",
    "half": lambda text: text[: len(text) // 2],
    "other JSON": lambda text: "[1, 2]",
    "no files": lambda text: json.dumps(json.loads(text) | {"files": [1]}),
    "short rows": lambda text: json.dumps(
        json.loads(text) | {"files": {"train/NG/0.png": [1] * 99, "train/NG/1.png": None}}
    ),
    "nested": lambda text: "[" * 100_000,
    "other version": lambda text: json.dumps(json.loads(text) | {"made_by": [1]}),
    "bytes": lambda text: "\x00\udcff",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_index_is_made_again(folder, damage):
    expected, known = everything(image_loader(folder)), rows(folder)
    place = index_of(folder)
    text = DAMAGES[damage](place.read_text(encoding="utf-8"))
    place.write_text(text, encoding="utf-8", errors="surrogateescape")
    assert_same(everything(image_loader(folder)), expected)
    assert rows(folder) == known


def test_index_that_cannot_be_written_is_said_and_kept_in_memory(folder, monkeypatch):
    expected = everything(image_loader(folder))
    shutil.rmtree(folder.with_name("parts.cache"))
    folder.with_name("parts.cache").write_text("a file in its place")
    paths = count_reads(monkeypatch)
    loader = image_loader(folder)
    ours = everything(loader)
    [line] = [line for line in ours[0] if "cannot be written" in line]
    assert line.startswith("every start reads every file, as ")
    ours[0].remove(line)
    assert_same(ours, expected)
    assert len(paths) == 24


def test_passing_errors_are_not_kept(folder, monkeypatch):
    """A file that could not be opened is looked at again, though neither size nor time changed."""
    secret, real = str(folder / "train" / "OK" / "3.png"), open

    def refuse(path, *arguments, **options):
        if path == secret:
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    for cache in (None, "disk", "ram"):
        monkeypatch.setattr("builtins.open", refuse)
        assert [line for line in image_loader(folder, cache=cache).check() if "permission" in line]
        monkeypatch.setattr("builtins.open", real)
        loader = image_loader(folder, cache=cache)
        assert secret in loader.paths
        assert not [line for line in loader.check() if "permission" in line]


def test_several_runs_write_the_index_at_once(folder, monkeypatch):
    monkeypatch.setattr(os, "getpid", threading.get_ident)  # as if they were processes
    expected = everything(image_loader(folder))
    for _ in range(3):
        shutil.rmtree(folder.with_name("parts.cache"))
        with ThreadPoolExecutor(4) as threads:
            loaders = [image_loader(folder) for _ in range(4)]
            results = list(threads.map(lambda loader: loader.check(), loaders))
        assert results == [expected[0]] * 4
        assert set(rows(folder)) >= {"train/NG/0.png"}  # whole, whoever came last
    assert_same(everything(image_loader(folder)), expected)
    assert not list(folder.with_name("parts.cache").glob(".*"))


def test_parts_of_a_split_share_the_index(folder, monkeypatch):
    settings = {"split": [0.6, 0.3, 0.1]}
    image_loader(folder / "train", **settings).check()
    paths = count_reads(monkeypatch)
    image_loader(folder / "train", seed=8, **settings).check()  # other parts
    assert not paths
    assert len(rows(folder / "train")) == 17


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda place: os.utime(place / "NG" / "0.png", (1, 1)), True),
        (lambda place: (place / "OK" / "text.png").unlink(), True),
        (lambda place: (place / "NG" / "0.png").rename(place / "NG" / "x.png"), False),
        (lambda place: (place / "NG" / "0.png").rename(place / "OK" / "00.png"), False),
        (lambda place: (place / "NG" / "0.png").unlink(), False),
        (lambda place: Image.new("RGB", (60, 50)).save(place / "NG" / "0.png"), False),
        (lambda place: save_images(place.parent / "val", {"NG": 9}), True),
    ],
)
def test_digest_changes_with_the_training_images_alone(folder, change, same):
    before = image_loader(folder).digest
    assert len(before) == 32
    assert image_loader(folder, cache="ram", classes=["OK", "NG"]).digest == before
    change(folder / "train")
    assert (image_loader(folder).digest == before) == same
    moved = folder.rename(folder.with_name("moved"))
    assert (image_loader(moved).digest == before) == same


def test_digest_is_of_what_a_loader_serves(folder):
    loader = image_loader(folder)
    digests = {part.digest for part in (loader, loader.split_validation())}
    shutil.rmtree(folder / "val")
    loader = image_loader(folder, validation_split=0.5)
    digests |= {part.digest for part in (loader, loader.split_validation())}
    assert len(digests) == 4
    assert NumbersLoader().digest is None
