"""Pictures in memory, augmented a batch at a time; CIFAR-10's recipe on a stand-in; the profile; the start."""

import gc
import json
import pickle  # the format that the data set comes in
import re

import numpy as np
import pytest
import torch

from data_loader.data_loaders import Cifar10DataLoader
from data_loader.datasets import Flip, PicturesInMemory, Shift
from parse_config import ConfigParser
from tests.conftest import ROOT, assert_same, build, last_checkpoint
from utils import checkpoint, command_line, config_file
from utils.errors import UserError
from utils.randomness import seeded

BATCH = torch.arange(6 * 2 * 8 * 9, dtype=torch.int64).remainder(251).to(torch.uint8).view(6, 2, 8, 9)


def test_flips_mirror_about_half():
    with seeded(1):
        flipped = Flip()(BATCH.repeat(50, 1, 1, 1))
    same = [torch.equal(one, other) for one, other in zip(flipped, BATCH.repeat(50, 1, 1, 1), strict=True)]
    mirrored = [torch.equal(one, other.flip(-1)) for one, other in zip(flipped, BATCH.repeat(50, 1, 1, 1), strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 110 < sum(same) < 190


def test_shifts_are_crops_of_the_reflected_picture():
    """Against numpy's padding: each picture is one of the crops, and all of them come."""
    shift, found = Shift(2), set()
    padded = np.pad(BATCH[0].numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect")
    crops = {(y, x): padded[:, y : y + 8, x : x + 9] for y in range(5) for x in range(5)}
    with seeded(2):
        moved = shift(BATCH[:1].expand(400, -1, -1, -1))
    for picture in moved.numpy():
        found.add(next(place for place, crop in crops.items() if np.array_equal(crop, picture)))
    assert len(found) == 25
    assert moved.dtype == torch.uint8


@pytest.fixture
def cifar(tmp_path):
    """A folder in CIFAR-10's format, with a few pictures: each class of a colour of its own."""
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        labels = generator.permutation(np.arange(40) % 10)
        base = (labels[:, None] * 25 + np.array([0, 90, 180])) % 256
        pictures = np.repeat(base, 1024, axis=1) + generator.integers(-10, 10, (40, 3072))
        with open(folder / name, "wb") as file:
            pickle.dump({"data": pictures.clip(0, 255).astype(np.uint8), "labels": labels.tolist()}, file)
    with open(folder / "batches.meta", "wb") as file:
        pickle.dump({"label_names": list("abcdefghij")}, file)
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def _unchecked(monkeypatch):
    from torchvision import datasets

    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)


def recipe(cifar, tmp_path, **changes):
    config = config_file.read(ROOT / "configs" / "cifar10_fast.json")
    config["data_loader"]["args"] |= {"data_dir": str(cifar), "batch_size": 20}
    config["test_data_loader"]["args"]["data_dir"] = str(cifar)
    config["arch"]["args"] = {"width": 4}
    config["engine"] = {"precision": "bf16"}
    config["optimizer"]["args"]["lr"] = config["lr_scheduler"]["args"]["max_lr"] = 0.1
    config["trainer"] |= {
        "save_dir": str(tmp_path / "saved"),
        "epochs": 8,
        "tensorboard": False,
        "save_freq": 1,
        "ema_decay": 0.8,
    } | changes
    return config


def test_the_recipe_for_cifar_learns_and_goes_on_exactly(cifar, tmp_path, train, resume):
    import test as test_script

    whole = train(recipe(cifar, tmp_path))
    half = train(recipe(cifar, tmp_path), "-s", "lr_scheduler.args.total_steps=80", "trainer.epochs=4")
    resume(half, "-s", "trainer.epochs=8")
    one, two = (last_checkpoint(run) for run in (whole, half))
    for key in ("state_dict", "ema", "rng"):
        assert_same(one[key], two[key])
    assert test_script.main(["-r", str(whole)]) == 0
    assert json.loads((whole / "test" / "result.json").read_text())["accuracy"] > 0.3  # by chance 0.1


def test_augmentation_is_of_training_pictures_alone_and_no_matter_of_workers(cifar):
    loader = Cifar10DataLoader(str(cifar), batch_size=16, seed=3, validation_split=0.2)
    validation = loader.split_validation()
    whole = loader.of_subset("train").samples
    assert torch.equal(next(iter(validation))[0], whole.__getitems__(validation.dataset.indices[:16].tolist())[0])
    other = Cifar10DataLoader(str(cifar), batch_size=16, seed=3, validation_split=0.2, num_workers=2)
    plain = Cifar10DataLoader(str(cifar), batch_size=16, seed=3, validation_split=0.2, flip=False, shift=0)
    for one, two, three in zip(loader, other, plain, strict=True):
        assert_same(one, two)
        assert not torch.equal(one[0], three[0])
        assert torch.equal(one[1], three[1])


def test_pictures_stay_the_same_on_the_device_that_holds_them():
    pictures = PicturesInMemory(BATCH, torch.arange(6), ["a"], [0.5, 0.5], [0.2, 0.2], [Flip(), Shift(1)])
    with seeded(7):
        expected = pictures.__getitems__([1, 4])
    pictures.to(torch.device("cpu"))
    with seeded(7):
        assert_same(pictures.__getitems__([1, 4]), expected)
    assert not pictures.draws_nothing


def test_the_profile_names_all_parts_and_writes_a_trace(digits, train, capsys):
    run = train(digits(), "--profile", "6")
    said = capsys.readouterr().out
    shares = {name: float(share) for name, share in re.findall(r"^(\w+) +[\d.]+ +([\d.]+)%", said, re.MULTILINE)}
    assert list(shares) == ["data", "forward", "backward", "optimizer", "logging"]
    assert sum(shares.values()) == pytest.approx(100, abs=0.5)
    assert all(share > 0 for share in shares.values())
    trace = json.loads((checkpoint.log_dir_of(run) / "trace.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"]]
    assert names.count("backward") == 6
    assert not list(run.glob("*.pth"))


def test_a_profiled_trainer_is_as_it_was(digits):
    from trainer.profile import profile

    trainer, other = build(digits({"trainer.epochs": 1})), build(digits({"trainer.epochs": 1}))
    profile(trainer, 3)
    assert trainer.engine.forward.__func__ is type(trainer.engine).forward
    assert trainer.loss.__func__ is type(other).loss


@pytest.mark.parametrize(("gpu", "cores", "workers"), [(False, 16, 0), (True, 16, 8), (True, 4, 3), (True, 1, 0)])
def test_as_many_workers_as_the_machine_has_use_for(digits, pictures, tmp_path, monkeypatch, gpu, cores, workers):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert ConfigParser(pictures(tmp_path, num_workers="auto")).init_obj("data_loader").num_workers == workers
    assert ConfigParser(digits({"data_loader.args.num_workers": "auto"})).init_obj("data_loader").num_workers == 0


def test_while_modules_are_loaded_the_garbage_collector_rests():
    with command_line._loading():
        assert not gc.isenabled()
        came = [[] for _ in range(2000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    old = {id(one) for one in gc.get_objects(generation=2)}
    assert all(id(one) in old for one in came)
    with pytest.raises(UserError), command_line._loading():
        raise UserError("a fault")
    assert gc.isenabled()
