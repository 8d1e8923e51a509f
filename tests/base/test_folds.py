"""Folds compared with scikit-learn's: each sample is tested once, classes and lots are kept."""

import collections

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from data_loader.data_loaders import DigitsDataLoader
from data_loader.image_folder import ImageFolderDataLoader
from tests.base.test_data_loader import NumbersLoader, numbers
from tests.conftest import save_images
from utils.errors import UserError


def served(loader):
    return np.sort(loader.dataset.indices)


def parts_of(loader):
    """The samples for training, validation and testing."""
    return [served(loader), served(loader.split_validation()), served(loader.for_subset("test"))]


@pytest.mark.parametrize("folds", [3, 5, 10])
@pytest.mark.parametrize("counts", [[50, 30, 23], [97, 4, 10], [10, 10, 10]])
def test_folds_are_stratified_like_scikit_learns(folds, counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    theirs = StratifiedKFold(folds, shuffle=True, random_state=0)
    expected = [np.bincount(labels[test], minlength=3) for _, test in theirs.split(labels, labels)]
    found = []
    for fold in range(folds):
        loader = NumbersLoader(sum(counts), labels, fold=[fold, folds])
        train, val, test = parts_of(loader)
        assert sorted([*train, *val, *test]) == list(range(sum(counts)))
        found.append(np.bincount(labels[test], minlength=3))
        following = NumbersLoader(sum(counts), labels, fold=[(fold + 1) % folds, folds])
        assert (val == parts_of(following)[2]).all()  # the next fold validates
    np.testing.assert_array_equal(np.sum(found, 0), counts)
    assert np.abs(np.subtract(found, np.mean(expected, 0))).max() < 1


def test_neither_validation_nor_test_samples_are_augmented():
    loader = NumbersLoader(fold=[2, 4])
    assert numbers(loader)[:, 1].any()
    for part in (loader.split_validation(), loader.for_subset("test")):
        data = numbers(part)
        assert not data[:, 1].any()
        assert data[:, 0].tolist() == served(part).tolist()


def test_seed_shares_out_anew():
    first, same, other = (
        parts_of(NumbersLoader(fold=[0, 5], seed=seed))[2].tolist() for seed in (1, 1, 2)
    )
    assert first == same != other


@pytest.mark.parametrize("args", [
    {"fold": [5, 5]}, {"fold": [0, 2]}, {"fold": [0, 5], "validation_split": 0.1},
])  # fmt: skip
def test_impossible_folds_are_refused(args):
    with pytest.raises(UserError, match=r"data_loader\.args\.fold: .*at least 3 folds"):
        NumbersLoader(**args)


def test_lots_stay_together(tmp_path):
    generator = np.random.default_rng(0)
    counts = {"NG": 24, "OK": 60}
    save_images(tmp_path / "parts", counts, size=(8, 8))
    for label in counts:
        for path in sorted((tmp_path / "parts" / label).iterdir()):
            path.rename(path.with_name(f"lot{generator.integers(20)}_{path.name}"))
    args = {"data_dir": str(tmp_path / "parts"), "image_size": 8, "group": r"lot\d+",
            "split": [1, 0, 0]}  # fmt: skip
    tested, lots, rows = [], collections.defaultdict(set), []
    for fold in range(4):
        loader = ImageFolderDataLoader(**args, fold=[fold, 4])
        assert loader.check()
        test = loader.for_subset("test")
        tested += test.paths
        rows.append(np.bincount([test.samples.targets[n] for n in test.dataset.indices]))
        for path in test.paths:
            lots[path.rpartition("/")[2].split("_")[0]].add(fold)
    assert sorted(tested) == sorted(map(
        str, (tmp_path / "parts").rglob("*.png")))  # fmt: skip
    assert {len(folds) for folds in lots.values()} == {1}
    whole = ImageFolderDataLoader(**args).samples
    theirs = StratifiedGroupKFold(4, shuffle=True, random_state=0)
    split = theirs.split(whole.targets, whole.targets, whole.groups)
    spread = np.std([np.bincount(np.array(whole.targets)[test]) for _, test in split], 0)
    assert (np.std(rows, 0) <= spread + 1).all()


@pytest.mark.parametrize("own", [("train", "val"), ("train", "val", "test")])
def test_the_datas_own_parts_are_not_used(tmp_path, own):
    for subset in own:
        save_images(tmp_path / "parts" / subset, {"NG": 9, "OK": 12}, size=(8, 8))
    loader = ImageFolderDataLoader(str(tmp_path / "parts"), image_size=8, fold=[0, 3])
    paths = [path for part in (loader, loader.split_validation(), loader.for_subset("test"))
             for path in part.paths]  # fmt: skip
    assert sorted(paths) == sorted(map(str, (tmp_path / "parts" / "train").rglob("*.png")))
    loader.check()


def test_data_in_memory_is_shared_out(data_dir):
    tested = [parts_of(DigitsDataLoader(data_dir=str(data_dir), fold=[n, 3]))[2] for n in range(3)]
    whole = DigitsDataLoader(data_dir=str(data_dir))
    assert sorted(np.concatenate(tested)) == list(range(len(whole.dataset)))
