"""Shards give what the image folder gives from which they were made."""

import json
import os
import tarfile

import pytest
import torch
from PIL import Image

from data_loader import shards
from data_loader.image_folder import ImageFolderDataLoader
from data_loader.shards import ShardDataLoader
from tests.conftest import assert_same, last_checkpoint, save_images
from tests.trainer.test_resume import STOPPER, comparable, rows
from tests.utils.processes import run_processes
from utils.errors import UserError


@pytest.fixture
def folder(tmp_path):
    save_images(tmp_path / "parts" / "train", {"NG": 9, "OK": 14}, size=(50, 60))
    save_images(tmp_path / "parts" / "val", {"NG": 3, "OK": 4}, size=(30, 30), suffix=".bmp")
    place = tmp_path / "parts" / "train" / "NG"
    Image.new("RGB", (40, 30), "red").save(place / "lot 7.left 50%.png")
    (place / "不良").mkdir()
    Image.new("RGB", (40, 30), "blue").save(place / "不良" / "写真.PNG")
    (place / "bad.png").write_text("no image")
    return tmp_path / "parts"


@pytest.fixture
def packed(folder, tmp_path):
    """The shards of the folder, of about three images each."""
    made = list(shards.write_shards(folder, tmp_path / "shards", 30_000))
    assert len(made) > 6
    return tmp_path / "shards"


def loaders(folder, packed, **arguments):
    settings = {"image_size": 12, "batch_size": 4, "cache": None} | arguments
    return ImageFolderDataLoader(str(folder), **settings), ShardDataLoader(str(packed), **settings)


def names_in(lines, *places):
    """Without what differs: where the files are."""
    for place in places:
        lines = [line.replace(str(place), "") for line in lines]
    return [line for line in lines if "kept in" not in line and "left out" not in line]


SETTINGS = {
    "plain": {},
    "shuffled": {"transforms": "inspection", "normalize": "data", "seed": 3},
    "workers": {"transforms": "inspection", "num_workers": 2},
    "kept": {"cache": "disk"},
    "balanced": {"balance": "sampler"},
    "cut": {"data_dir": "train", "split": [0.6, 0.2, 0.2]},
    "lots": {"data_dir": "train", "split": [0.6, 0.4, 0.0], "group": r"(\d)"},
    "fold": {"data_dir": "train", "split": [1.0, 0.0, 0.0], "fold": [0, 3]},
    "while training": {"data_check": "while-training"},
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_batches_are_those_of_the_folder(folder, packed, tmp_path, settings):
    settings = dict(SETTINGS[settings])
    if settings.pop("data_dir", None):
        folder = folder / "train"
        packed = tmp_path / "other"
        list(shards.write_shards(folder, packed, 30_000))
    ours, theirs = loaders(folder, packed, **settings)[::-1]
    assert names_in(ours.check(), packed) == names_in(theirs.check(), folder)
    assert (ours.classes, len(ours), ours.digest) == (theirs.classes, len(theirs), theirs.digest)
    for epoch in (1, 2):
        ours.set_epoch(epoch), theirs.set_epoch(epoch)
        assert_same(list(ours), list(theirs))
    validation = ours.split_validation()
    if validation is not None:
        assert_same(list(validation), list(theirs.split_validation()))


def test_index_beside_a_shard_saves_reading_it(folder, packed, monkeypatch):
    expected = list(loaders(folder, packed)[1])
    monkeypatch.setattr(shards, "_scan", lambda shard: pytest.fail("the tar file was read"))
    assert_same(list(loaders(folder, packed)[1]), expected)


@pytest.mark.parametrize("damage", ["[]", "{", '{"made_by": [1]}', "cut", "[" * 99_999, "odd"])
def test_damaged_or_old_index_is_made_again(folder, packed, damage):
    expected = list(loaders(folder, packed)[1])
    for file in packed.glob("*.index"):
        text = file.read_text()
        odd = json.loads(text)
        odd["images"][0][2:] = [-1, "x"]
        changed = {"cut": text[: len(text) // 2], "odd": json.dumps(odd)}
        file.write_text(changed.get(damage, damage))
    assert_same(list(loaders(folder, packed)[1]), expected)
    shard = packed / "train-000000.tar"
    os.utime(shard, (1, 1))
    assert_same(list(loaders(folder, packed)[1]), expected)


def test_bad_image_in_a_shard_is_named(folder, packed):
    lines = loaders(folder, packed)[1].check()
    [bad] = [line for line in lines if "left out" in line]
    assert "train-00000" in bad
    assert "bad.png: is not an image" in bad


def test_cut_shard_is_a_sentence(folder, packed):
    shard = packed / "train-000001.tar"
    content = shard.read_bytes()
    for damaged in (b"", b"no tar", content[:700], content[: len(content) // 2]):
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match=r"train-000001\.tar is damaged, or not a tar file"):
            loaders(folder, packed)[1].check()


def test_what_is_no_set_of_shards_is_said(folder, tmp_path):
    with pytest.raises(UserError, match=r"there are no \*\.tar in"):
        ShardDataLoader(str(folder)).check()
    place = tmp_path / "own"
    list(shards.write_shards(folder / "train", place, 10**9))
    with pytest.raises(UserError, match=r'set "split"'):
        ShardDataLoader(str(place)).check()
    with pytest.raises(UserError, match="contains shards already"):
        list(shards.write_shards(folder, place, 10**9))
    with pytest.raises(UserError, match="labels"):
        ShardDataLoader(str(place), labels="labels.csv")
    (tmp_path / "zipped").mkdir()
    (tmp_path / "zipped" / "train-000000.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match="is compressed"):
        ShardDataLoader(str(tmp_path / "zipped")).check()


def test_command_converts_a_folder(folder, tmp_path, capsys):
    assert shards.main([str(folder), str(tmp_path / "new"), "--size", "1"]) == 0
    assert "train-000000.tar" in capsys.readouterr().out
    assert shards.main([str(tmp_path / "nothing"), str(tmp_path / "other")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_webdataset_reads_what_the_command_writes(folder, packed):
    webdataset = pytest.importorskip("webdataset")
    files = sorted(map(str, packed.glob("train-*.tar")))
    samples = list(webdataset.WebDataset(files, shardshuffle=False))
    assert len(samples) == 26
    labels = sorted(sample["cls"].decode() for sample in samples)
    assert labels == ["NG"] * 12 + ["OK"] * 14


@pytest.mark.parametrize("kind", ["cls", "json"])
def test_shards_of_webdataset_are_read(tmp_path, kind):
    webdataset = pytest.importorskip("webdataset")
    arrays = save_images(tmp_path / "images", {"0": 3, "1": 4})
    (tmp_path / "shards").mkdir()
    pattern = f"{tmp_path}/shards/train-%06d.tar"
    with webdataset.ShardWriter(pattern, maxcount=3, verbose=0) as sink:
        for number, name in enumerate(arrays):
            label = int(name[0])
            sink.write({
                "__key__": f"sample{number:04}",
                "png": (tmp_path / "images" / name).read_bytes(),
                kind: label if kind == "cls" else {"label": label, "source": "camera 1"},
            })  # fmt: skip
    loader = ShardDataLoader(
        str(tmp_path / "shards"), image_size=24, batch_size=7, shuffle=False,
        normalize={"mean": [0.0] * 3, "std": [1.0] * 3},
    )  # fmt: skip
    [(images, targets)] = list(loader)
    assert loader.classes == ["0", "1"]
    assert targets.tolist() == [0] * 3 + [1] * 4
    reference = ImageFolderDataLoader(
        str(tmp_path / "images"), split=[1.0, 0.0, 0.0], image_size=24, batch_size=7, shuffle=False,
        normalize={"mean": [0.0] * 3, "std": [1.0] * 3},
    )  # fmt: skip
    assert torch.equal(images, next(iter(reference))[0])


def test_several_classes_of_an_image(tmp_path):
    with tarfile.open(tmp_path / "train-0.tar", "w") as shard:
        for number, text in enumerate(["crack|dent", "dent", "crack"]):
            image, label = tmp_path / f"{number}.png", tmp_path / f"{number}.json"
            Image.new("RGB", (9, 9), (number, 0, 0)).save(image)
            label.write_text(json.dumps({"labels": text.split("|")}))
            shard.add(image, image.name)
            shard.add(label, label.name)
    loader = ShardDataLoader(str(tmp_path), image_size=9, shuffle=False, cache=None)
    targets = {path[-5]: target for path, target in zip(
        loader.paths, next(iter(loader))[1].tolist(), strict=True)}  # fmt: skip
    assert targets == {"0": [1, 1], "1": [0, 1], "2": [1, 0]}


def config_of(image_config, place, kind):
    config = image_config(place, transforms="inspection", num_workers=2)
    config["data_loader"]["type"] = kind
    config["trainer"] |= {"type": "stopper.Stopped", "epochs": 3}
    return config


def test_run_resumed_in_mid_shard_equals_that_on_the_folder(
    folder, packed, image_config, train, resume, own_code
):
    own_code("stopper", STOPPER)
    whole = train(config_of(image_config, folder, "ImageFolderDataLoader"))
    config = config_of(image_config, packed, "ShardDataLoader")
    config["trainer"]["at"] = 5
    half = train(config, code=130)
    assert last_checkpoint(half)["trainer"]["step"] > 0
    resume(half, "-s", "trainer.at=0")
    one, two = (comparable(last_checkpoint(run)) for run in (half, whole))
    assert_same(one, two)
    assert rows(half) == rows(whole)


def test_two_processes_share_the_batches(folder, packed):
    """Each gets the same part of each batch as from the folder."""

    def batches(cls, place):
        from utils.engine import distributed

        with distributed.process_group(on_cpu=True):
            loader = cls(str(place), image_size=12, batch_size=8, cache=None, seed=2)
            return [(images.sum().item(), targets.tolist()) for images, targets in loader]

    ours = run_processes(2, batches, ShardDataLoader, packed)
    assert ours == run_processes(2, batches, ImageFolderDataLoader, folder)
    assert ours[0] != ours[1]
