"""Folders of images, compared with torchvision's ImageFolder, numpy and scikit-learn."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from data_loader.image_folder import ImageFolderDataLoader
from tests.base.test_data_loader import first_pass
from tests.conftest import assert_same, last_checkpoint, save_images
from utils.errors import UserError

EVALUATION = v2.Compose(
    [
        v2.PILToTensor(),
        v2.Resize((28, 28)),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)
NO_NORMALISATION = {"mean": [0.0] * 3, "std": [1.0] * 3}


@pytest.fixture
def folder(tmp_path):
    """train/ with 12 NG and 30 OK, val/ with 4 and 6."""
    save_images(tmp_path / "train", {"NG": 12, "OK": 30})
    save_images(tmp_path / "val", {"NG": 4, "OK": 6}, suffix=".jpg")
    return tmp_path


def image_loader(folder, **arguments):
    return ImageFolderDataLoader(str(folder), **({"image_size": 28, "batch_size": 8} | arguments))


def served(loader):
    batches = list(loader)
    return torch.cat([data for data, _ in batches]), torch.cat([target for _, target in batches])


def order(loader, epoch):
    loader.sampler.epoch = epoch
    return [position for _, position, *_ in loader.sampler]


def names(loader, folder):
    return [os.path.relpath(path, folder) for path in loader.paths]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_equals_torchvisions_image_folder(folder, workers):
    save_images(folder / "val" / "OK", {"sub": 2}, size=(28, 28))
    loader = image_loader(folder, num_workers=workers)
    for subset, part in (
        ("train", loader.for_subset("train")),
        ("val", loader.split_validation()),
    ):
        reference = ImageFolder(folder / subset, EVALUATION)
        data, targets = served(part)
        assert part.paths == [path for path, _ in reference.samples]
        assert targets.tolist() == part.samples.targets == reference.targets
        assert part.classes == reference.classes
        torch.testing.assert_close(data, torch.stack([image for image, _ in reference]))
        assert part.input["shape"] == [3, 28, 28]
        assert part.input["mean"] == pytest.approx([0.485, 0.456, 0.406])


def test_grey_images(folder):
    loader = image_loader(
        folder, channels=1, image_size=[20, 24], normalize={"mean": [0.5], "std": [0.25]}
    )
    with Image.open(loader.for_subset("val").paths[0]) as image:
        expected = (np.asarray(image.convert("L")) / 255 - 0.5) / 0.25
    assert np.allclose(served(loader.split_validation())[0][0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", [None, "ram", "disk", "auto"])
@pytest.mark.parametrize("transforms", ["imagenet", "inspection"])
def test_each_cache_serves_the_same_batches(folder, workers, cache, transforms):
    # small enough that images are reduced while they are read
    settings = {"transforms": transforms, "image_size": 6, "seed": 3}
    stream = image_loader(folder, cache=None, **settings).batches()
    loader = image_loader(folder, cache=cache, num_workers=workers, **settings)
    ours = loader.batches()
    for _ in range(9):  # more than a pass
        assert_same(next(ours), next(stream))
    assert (loader.samples.contents.images is None) == (cache is None)
    # uses the first one's cache file
    again = image_loader(folder, cache=cache, num_workers=workers, **settings)
    uncached = image_loader(folder, cache=None, **settings)
    assert_same(next(again.batches()), next(uncached.batches()))


def test_transform_that_overwrites_its_image_does_not_change_the_cache(folder):
    class Blacken(torch.nn.Module):
        def forward(self, image):
            return image.zero_()

    loader = image_loader(folder, transforms={"train": [Blacken()]})
    assert served(loader)[0].std() < 1
    assert torch.equal(
        served(loader.for_subset("train"))[0],
        served(image_loader(folder).for_subset("train"))[0],
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("balance", [None, "sampler"])
def test_batches_follow_from_seed_and_number(folder, workers, balance):
    settings = {"transforms": "inspection", "balance": balance, "seed": 3}
    stream = image_loader(folder, **settings).batches()
    expected = [next(stream) for _ in range(14)]  # more than two passes of 6
    stream = image_loader(folder, num_workers=workers, **settings).batches(4)
    for data, targets in expected[4:]:
        one, labels = next(stream)
        assert torch.equal(one, data)
        assert torch.equal(labels, targets)
    other = next(image_loader(folder, **(settings | {"seed": 4})).batches())
    assert not torch.equal(other[0], expected[0][0])


@pytest.mark.parametrize("source", ["folder", "validation_split", "split"])
def test_validation_and_test_images_are_never_augmented(folder, source):
    arguments = {
        "folder": {},
        "validation_split": {"validation_split": 0.2},
        "split": {"split": [0.5, 0.3, 0.2]},
    }[source]
    if source != "folder":
        shutil.rmtree(folder / "val")
    root = folder / "train" if source == "split" else folder
    loader = image_loader(root, transforms="inspection", **arguments)
    parts = [loader.split_validation(), loader.for_subset("val"), loader.for_subset("train")]
    parts += [loader.for_subset("test")] if source == "split" else []
    for part in parts:
        data, _ = served(part)
        for image, path in zip(data, part.paths, strict=True):
            torch.testing.assert_close(image, EVALUATION(Image.open(path)))
    augmented, plain = loader.dataset, loader.for_subset("train").dataset
    changed = [
        not torch.equal(augmented[(0, i, 0)][0], plain[(0, i, 0)][0]) for i in range(len(plain))
    ]
    assert sum(changed) > 0.9 * len(changed)


def test_split_divides_each_class_by_the_shares(tmp_path):
    counts = {"NG": 300, "OK": 600}
    save_images(tmp_path, counts, size=(2, 2))
    loader = image_loader(tmp_path, split=[0.7, 0.2, 0.1], seed=3)
    parts = [loader, loader.split_validation(), loader.for_subset("test")]
    assert sorted(path for part in parts for path in part.paths) == [
        path for path, _ in ImageFolder(tmp_path).samples
    ]
    for part, share in zip(parts, [0.7, 0.2, 0.1], strict=True):
        numbers = np.bincount([part.samples.targets[i] for i in part.dataset.indices])
        expected = np.array(list(counts.values())) * share
        assert (np.abs(numbers - expected) < 4 * np.sqrt(expected * (1 - share))).all()  # binomial
    assert image_loader(tmp_path, split=[0.7, 0.2, 0.1], seed=4).paths != loader.paths


def test_split_stays_if_files_are_added_or_the_folder_moves(tmp_path):
    save_images(tmp_path / "one", {"NG": 40, "OK": 40}, size=(2, 2))
    before = {
        s: names(
            image_loader(tmp_path / "one", split=[0.6, 0.2, 0.2]).for_subset(s),
            tmp_path / "one",
        )
        for s in SUBSETS
    }
    shutil.move(tmp_path / "one", tmp_path / "two")
    save_images(tmp_path / "two", {"AA": 10, "NG": 55, "OK": 41}, size=(2, 2))
    after = {
        s: names(
            image_loader(tmp_path / "two", split=[0.6, 0.2, 0.2]).for_subset(s),
            tmp_path / "two",
        )
        for s in SUBSETS
    }
    for subset in SUBSETS:
        assert set(before[subset]) < set(after[subset])


SUBSETS = ("train", "val", "test")


def test_validation_has_one_source(folder):
    assert image_loader(folder).split_validation() is not None
    with pytest.raises(UserError, match="must be 0"):
        image_loader(folder, validation_split=0.1).split_validation()
    shutil.rmtree(folder / "val")
    assert image_loader(folder).split_validation() is None
    assert len(image_loader(folder, validation_split=10).split_validation().dataset) == 10
    assert image_loader(folder / "train", split=[0.8, 0.0, 0.2]).split_validation() is None


def test_class_missing_in_validation_keeps_its_number(folder):
    shutil.rmtree(folder / "val" / "NG")
    (folder / "train" / ".cache").mkdir()
    shutil.copytree(folder / "train" / "OK", folder / "val" / "OK" / ".ipynb_checkpoints")
    (folder / "val" / "OK" / "._0.jpg").write_bytes(b"left by a Mac")
    assert served(image_loader(folder).split_validation())[1].tolist() == [1] * 6
    assert image_loader(folder).split_validation().classes == ["NG", "OK"]


@pytest.mark.parametrize(
    ("arguments", "place", "message"),
    [
        ({}, "nowhere", "there is no folder .*nowhere"),
        (
            {},
            "train",
            r'there is no folder .*; if data_dir contains the classes\' folders, set "split"',
        ),
        ({}, "train/NG", "there is no folder .*train$"),
        ({"split": [0.5, 0.3, 0.2]}, ".", "is already split into train and val"),
        ({"split": [0.5, 0.3, 0.2]}, "train/NG", "contains no folders"),
        ({"split": [0.5, 0.3, 0.3]}, "train", r"\[0.5, 0.3, 0.3\] must add up to 1"),
    ],
)
def test_wrong_folders_are_named(folder, arguments, place, message):
    with pytest.raises(UserError, match=message):
        len(image_loader(folder / place, **arguments).dataset)


def test_unknown_classes_and_missing_test_images_are_errors(folder):
    with pytest.raises(UserError, match=r"no folder .*test"):
        len(image_loader(folder).for_subset("test").dataset)
    save_images(folder / "val", {"dust": 1})
    with pytest.raises(UserError, match="contains dust, which"):
        len(image_loader(folder).split_validation().dataset)


def test_balancing_sampler_draws_classes_equally_often(folder):
    loader = image_loader(folder, balance="sampler", shuffle=False)
    reference = np.array(loader.for_subset("train").samples.targets)
    draws = np.concatenate([order(loader, epoch) for epoch in range(100)])
    rate = reference[draws].mean()
    assert abs(rate - 0.5) < 5 * np.sqrt(0.25 / len(draws))
    for label, count in enumerate(np.bincount(reference)):  # and the images of a class
        counts = np.bincount(draws, minlength=len(reference))[reference == label]
        assert np.abs(counts - len(draws) / 2 / count).max() < 5 * np.sqrt(len(draws) / 2 / count)
    assert order(loader, 0) != order(loader, 1) == order(image_loader(folder, balance="sampler"), 1)
    assert order(loader.split_validation(), 5) == list(range(10))
    # also if a part is split off
    part = image_loader(folder / "train", balance="sampler", split=[0.9, 0.1, 0.0])
    targets = np.array(part.samples.targets)
    assert 0.4 < np.mean([targets[order(part, epoch)].mean() for epoch in range(50)]) < 0.6
    assert loader.class_weights is None


def test_image_drawn_twice_is_augmented_differently(folder):
    shutil.rmtree(folder / "train" / "NG")
    save_images(folder / "train", {"NG": 1})
    loader = image_loader(folder, balance="sampler", transforms="inspection")
    data, targets = (torch.cat(parts) for parts in zip(*first_pass(loader), strict=True))
    assert (targets == 0).sum() > 5
    drawn = data[targets == 0].flatten(1)
    assert len(torch.unique(drawn, dim=0)) == len(drawn)


def test_class_weights_equal_scikit_learns(folder):
    loader = image_loader(folder, balance="loss", validation_split=0)
    targets = loader.samples.targets
    assert loader.class_weights == pytest.approx(
        compute_class_weight("balanced", classes=np.unique(targets), y=targets)
    )
    assert image_loader(folder).class_weights is None


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_from_data_equals_numpys(folder, channels):
    save_images(folder / "train", {"OK": 31}, size=(9, 30))  # every pixel counts, not every image
    loader = image_loader(folder, channels=channels, normalize="data")
    mode = "L" if channels == 1 else "RGB"
    images = [
        np.asarray(Image.open(path).convert(mode)).reshape(-1, channels) for path in loader.paths
    ]
    pixels = np.concatenate(images) / 255
    for part in (loader.split_validation(), loader):
        assert part.input["mean"] == pytest.approx(pixels.mean(0), abs=1e-6)
        assert part.input["std"] == pytest.approx(pixels.std(0), abs=1e-6)
    same_size = image_loader(
        folder, channels=channels, normalize="data", image_size=[9, 30], transforms="none"
    )
    array = (
        torch.from_numpy(np.array(Image.open(loader.paths[-1]).convert(mode)))
        .reshape(9, 30, channels)
        .permute(2, 0, 1)
    )
    expected = (array.numpy() / 255 - pixels.mean(0)[:, None, None]) / pixels.std(0)[:, None, None]
    assert np.allclose(same_size.prepare(array), expected, atol=1e-5)


def test_prepare_equals_validation(folder):
    loader = image_loader(folder, transforms="imagenet")
    validation = loader.split_validation()
    prepare = image_loader("nowhere", transforms="imagenet").prepare
    images = [
        torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in validation.paths
    ]
    ours = torch.stack([prepare(image) for image in images])
    assert torch.equal(ours, served(validation)[0])


def test_checkpoint_has_what_prediction_needs_and_is_resumed_exactly(
    folder, image_config, train, resume
):
    config = image_config(
        folder,
        channels=3,
        transforms="inspection",
        normalize="data",
        balance="sampler",
        num_workers=2,
    )
    config["arch"]["args"]["in_channels"] = 3
    whole = train(config)
    state = last_checkpoint(whole)
    assert state["classes"] == ["NG", "OK"]
    assert state["input"] == image_loader(folder, normalize="data").input
    half = train(config, "--epochs", 1)
    resume(half, "-s", "trainer.epochs=2", "data_loader.args.num_workers=0")
    for name, tensor in last_checkpoint(half)["state_dict"].items():
        assert torch.equal(tensor, state["state_dict"][name])


def test_hymenoptera_equals_torchvision(kata_data):
    """256 pixels are not far more than needed, so the images are read as they are."""
    folder = kata_data / "hymenoptera_256"
    loader = image_loader(folder, image_size=128).split_validation()
    to_float = [
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    resized = v2.Compose(
        [lambda image: image.convert("RGB"), v2.PILToTensor(), v2.Resize((128, 128)), *to_float]
    )
    reference = ImageFolder(folder / "val", resized)
    ours = dict(zip(loader.paths, served(loader)[0], strict=True))
    for (path, _), (image, _) in zip(reference.samples, reference, strict=True):
        torch.testing.assert_close(ours[path], image)


def test_stratified_split_has_each_class_in_each_part_and_stays(tmp_path):
    folder = tmp_path / "parts"
    save_images(folder, {"NG": 7, "OK": 50}, size=(2, 2))
    shares = {"split": [0.7, 0.15, 0.15], "stratify": True}

    def parts():
        loader = image_loader(folder, **shares)
        loaders = [loader, loader.split_validation(), loader.for_subset("test")]
        return [set(names(part, folder)) for part in loaders]

    before = parts()
    assert all(any(name.startswith("NG") for name in part) for part in before)
    assert sorted(name for part in before for name in part) == [
        os.path.relpath(path, folder) for path, _ in ImageFolder(folder).samples
    ]
    for number in range(20):
        Image.new("RGB", (2, 2), (number, 0, 0)).save(folder / "NG" / f"new{number}.png")
    for old, new in zip(before, parts(), strict=True):
        assert old < new
    # what is remembered is not needed for the same files, and may be damaged
    memory = tmp_path / "parts.cache" / "parts.json"
    after = parts()
    for content in ("", "[1]", '{"a": 3}'):
        memory.write_text(content)
        assert [len(part) for part in parts()] == [len(part) for part in after]
    assert image_loader(folder, split=[0.7, 0.15, 0.15]).paths  # without it nothing changes


@pytest.mark.parametrize("cut", [{"split": [0.6, 0.2, 0.2]}, {"validation_split": 0.25}])
def test_lots_are_in_one_part(tmp_path, cut):
    folder = tmp_path / ("parts" if "split" in cut else "parts/train")
    for lot in range(20):
        for number in range(4):
            place = folder / ("NG" if lot % 5 == 0 else "OK")
            place.mkdir(parents=True, exist_ok=True)
            pixels = np.full((2, 2, 3), lot, np.uint8)
            Image.fromarray(pixels).save(place / f"lot{lot}_{number}.png")
    loader = image_loader(tmp_path / "parts", group=r"^(lot\d+)_", **cut)
    loaders = [loader, loader.split_validation()]
    loaders += [loader.for_subset("test")] if "split" in cut else []
    lots = [{os.path.basename(p).partition("_")[0] for p in part.paths} for part in loaders]
    assert sum(map(len, lots)) == len(set().union(*lots)) == 20
    assert all(
        len(part.dataset) == 4 * len(found) for part, found in zip(loaders, lots, strict=True)
    )
    assert all(any("NG" in path for path in part.paths) for part in loaders[:2])


def test_group_that_is_no_pattern_is_said(folder):
    with pytest.raises(
        UserError, match=r'data_loader.args.group: "\(lot" is not a regular expression'
    ):
        image_loader(folder, group="(lot")
