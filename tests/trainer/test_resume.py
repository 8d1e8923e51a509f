"""A run that was interrupted and continued equals the unbroken one to the last bit."""

import csv
import json
import os
import shutil
import signal

import pytest
import torch
from torch import nn

import train as train_script
from tests.conftest import (
    SMALL_NETWORK,
    assert_same,
    build,
    last_checkpoint,
    runs,
    save_images,
)
from utils import checkpoint, run_folder

ADAM = {}
CYCLE = {
    "optimizer": {"type": "SGD", "args": {"lr": 0.1, "momentum": 0.9}},
    "lr_scheduler": {"type": "OneCycleLR", "args": {"max_lr": 0.1, "total_steps": 4 * 7}},
    "trainer.ema_decay": 0.95,
    "trainer.grad_accum_steps": 2,
    "metrics": [
        "accuracy",
        {"type": "F1Score", "args": {"task": "multiclass", "num_classes": 10, "average": "macro"}},
    ],
}
PLATEAU = {
    "lr_scheduler": {"type": "ReduceLROnPlateau", "args": {"patience": 0, "threshold": 0.5}},
    "trainer.early_stop": 3,
}
NORMS = {"arch": "net.dropping", "metrics": ["accuracy"]}  # statistics that are counted anew
AVERAGED_NORMS = CYCLE | NORMS
ITERATIONS = {"trainer.len_epoch": 9, "data_loader.args.drop_last": True}
SEQUENCE = {
    "optimizer": {"type": "AdamW", "args": {"lr": 0.002}},
    "lr_scheduler": {
        "type": "SequentialLR",
        "args": {
            "schedulers": [
                {"type": "LinearLR", "args": {"total_iters": 2}},
                {"type": "MultiStepLR", "args": {"milestones": [1]}},
            ],
            "milestones": [2],
        },
    },
}


def comparable(state):
    """A checkpoint without what may differ: the times, the folder, the number of workers."""
    return {
        key: value for key, value in state.items() if key not in ("config", "versions", "sessions")
    }


def rows(run):
    with open(run_folder.log_dir_for(run) / "metrics.csv", newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "samples_per_second")}
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize(
    "changes",
    [ADAM, CYCLE, PLATEAU, ITERATIONS, SEQUENCE, NORMS, AVERAGED_NORMS],
    ids=["adam", "cycle", "plateau", "len", "seq", "norms", "averaged-norms"],
)
def test_resumed_run_equals_unbroken_run(digits, train, resume, own_code, changes):
    own_code("net", SMALL_NETWORK)
    whole = train(digits(changes), "--epochs", 4)
    half = train(digits(changes), "--epochs", 2)
    resume(half, "-s", "trainer.epochs=4")
    assert_same(comparable(last_checkpoint(half)), comparable(last_checkpoint(whole)))
    assert_same(
        comparable(checkpoint.load(half / "model_best.pth")),
        comparable(checkpoint.load(whole / "model_best.pth")),
    )
    assert rows(half) == rows(whole)
    assert [row["epoch"] for row in rows(half)] == ["1", "2", "3", "4"]


@pytest.mark.usefixtures("workers_for_memory")
def test_number_of_workers_changes_nothing(digits, train, resume):
    whole = train(digits({"data_loader.args.num_workers": 2}), "--epochs", 4)
    half = train(digits({"data_loader.args.num_workers": 0}), "--epochs", 2)
    resume(half, "-s", "trainer.epochs=4", "data_loader.args.num_workers=2")
    third = train(digits({"data_loader.args.num_workers": 0}), "--epochs", 4)
    assert_same(comparable(last_checkpoint(half)), comparable(last_checkpoint(whole)))
    assert_same(comparable(last_checkpoint(third)), comparable(last_checkpoint(whole)))


@pytest.mark.usefixtures("workers_for_memory")
def test_batches_for_statistics_do_not_disturb_those_of_workers(digits, train, own_code):
    own_code("net", SMALL_NETWORK)
    changes = {**NORMS, "data_loader.args.batch_size": 50, "trainer.epochs": 3}  # 26 batches
    made = [train(digits({**changes, "data_loader.args.num_workers": n})) for n in (0, 2)]
    one, two = (comparable(last_checkpoint(run)) for run in made)
    assert_same(two, one)


STOPPER = """
import os, signal
from trainer import Trainer
class Stopped(Trainer):
    not_kept = (*Trainer.not_kept, "at", "where", "signum", "seen")
    def __init__(self, *args, at: int = 0, where: str = "train", signum: int = 2, **kwargs):
        super().__init__(*args, **kwargs)
        self.at, self.where, self.signum, self.seen = at, where, signum, 0
    def after_backward(self):
        self.seen += self.where == "train"
        if self.where == "train" and self.seen == self.at:
            os.kill(os.getpid(), self.signum)
    def _valid_epoch(self, epoch):
        if self.where == "valid" and epoch == self.at:
            os.kill(os.getpid(), self.signum)
        return super()._valid_epoch(epoch)
"""


@pytest.mark.parametrize(
    ("at", "where", "changes", "step"),
    [
        (17, "train", ADAM, 4),
        (10, "train", CYCLE, 6),
        (13, "train", ADAM, 13),
        (2, "valid", CYCLE, 13),
        (12, "train", ITERATIONS, 3),
        (16, "train", NORMS, 3),
        (2, "valid", AVERAGED_NORMS, 13),
    ],
    ids=["mid", "mid-cycle", "last-batch", "validation", "len", "norms", "averaged-norms"],
)
def test_run_resumed_after_a_signal_equals_unbroken_run(
    digits, train, resume, own_code, capsys, at, where, changes, step
):
    own_code("stopper", STOPPER)
    own_code("net", SMALL_NETWORK)
    stopped = {**changes, "trainer.type": "stopper.Stopped", "trainer.epochs": 3}
    whole = train(digits(stopped))
    half = train(digits({**stopped, "trainer.at": at, "trainer.where": where}), code=130)
    assert f"Continue with:\n  python train.py -r {half}" in capsys.readouterr().out
    assert last_checkpoint(half)["trainer"]["step"] == step
    resume(half, "-s", "trainer.at=0")
    assert_same(comparable(last_checkpoint(half)), comparable(last_checkpoint(whole)))
    assert rows(half) == rows(whole)


@pytest.mark.parametrize("cache", ["ram", "disk", None])
def test_image_run_resumed_with_any_cache_and_workers_equals_unbroken_run(
    image_config, train, resume, own_code, tmp_path, cache
):
    own_code("stopper", STOPPER)
    folder = tmp_path / "images"
    save_images(folder / "train", {"NG": 20, "OK": 30}, size=(70, 64))
    config = image_config(
        folder,
        transforms="inspection",
        cache=cache,
        num_workers=2,
        validation_split=0.2,
        balance="sampler",
    )
    config["trainer"] |= {"type": "stopper.Stopped", "epochs": 3}
    whole = train(
        config | {"data_loader": copy_with(config["data_loader"], cache=None, num_workers=0)}
    )
    config["trainer"] |= {"at": 8}
    half = train(config, code=130)
    assert last_checkpoint(half)["trainer"]["step"] == 3
    resume(half, "-s", "trainer.at=0", "data_loader.args.cache=auto")
    assert_same(comparable(last_checkpoint(half)), comparable(last_checkpoint(whole)))
    assert rows(half) == rows(whole)


def test_run_that_checks_while_training_resumed_equals_unbroken_run(
    image_config, train, resume, own_code, tmp_path
):
    """The bad files are not known when it begins, and are when it goes on."""
    own_code("stopper", STOPPER)
    folder = tmp_path / "images"
    save_images(folder / "train", {"NG": 20, "OK": 30}, size=(70, 64))
    save_images(folder / "val", {"NG": 4, "OK": 6}, size=(70, 64))
    for name in ("train/NG/3.png", "train/OK/0.png", "train/OK/29.png"):
        (folder / name).write_text("no image")
    config = image_config(
        folder, transforms="inspection", num_workers=2, data_check="while-training",
        normalize="imagenet",
    )  # fmt: skip
    config["trainer"] |= {"type": "stopper.Stopped", "epochs": 3}
    whole = train(config)
    shutil.rmtree(tmp_path / "images.cache")
    config["trainer"] |= {"at": 8}
    half = train(config, code=130)
    assert last_checkpoint(half)["trainer"]["step"] > 0
    resume(half, "-s", "trainer.at=0")
    one, two = (comparable(last_checkpoint(run)) for run in (half, whole))
    assert (len(one["origin"].pop("data")), two["origin"].pop("data")) == (32, None)
    assert_same(one, two)
    assert rows(half) == rows(whole)


def copy_with(section, **arguments):
    return section | {"args": section["args"] | arguments}


def test_resume_takes_a_file_a_folder_or_the_newest_run(
    digits, train, resume, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = digits({"trainer.save_dir": "saved"})
    first, second = train(config), train(config)
    assert train_script.main(["-r", "--epochs", "3"]) == 0
    assert (last_checkpoint(first)["epoch"], last_checkpoint(second)["epoch"]) == (2, 3)
    resume(first / "checkpoint-epoch2.pth", "--epochs", 3)
    assert last_checkpoint(first)["epoch"] == 3
    named = train(config | {"name": "Other"})
    assert (
        train_script.main(["-r", "-c", str(tmp_path / "config.json"), "--epochs", "3"]) == 0
    )  # the newest named Other
    assert last_checkpoint(named)["epoch"] == 3
    assert len(runs(tmp_path)) == 3
    resume(first, "--epochs", 3)  # nothing left to do is no error


def test_resuming_an_earlier_checkpoint_sets_the_later_ones_aside(digits, train, resume, capsys):
    run = train(digits(), "--epochs", 4)
    before = last_checkpoint(run)
    resume(run / "checkpoint-epoch2.pth")
    assert "moved to" in capsys.readouterr().out
    assert sorted(p.name for p in (run / "replaced").iterdir()) == [
        "checkpoint-epoch3.pth",
        "checkpoint-epoch4.pth",
        "model_best.pth",
    ]
    assert_same(comparable(last_checkpoint(run)), comparable(before))
    assert len(rows(run)) == 4


def test_schedule_that_has_ended_keeps_its_last_rate_and_says_so(digits, train, resume, capsys):
    run = train(
        digits({"lr_scheduler": {"type": "OneCycleLR", "args": {"max_lr": 0.01}}}), "--epochs", 2
    )
    assert "ends after" not in capsys.readouterr().out
    resume(run, "--epochs", 4)
    assert "OneCycleLR ends after 26 of 52 steps" in capsys.readouterr().out
    lowest = 0.01 / 25 / 1e4
    assert [float(row["lr"]) for row in rows(run)][2:] == pytest.approx([lowest, lowest])


@pytest.mark.parametrize(
    ("type", "arguments", "message"),
    [
        ("PolynomialLR", {"total_iters": 2}, "ends after 2 of 3 epochs; from there on the learning "
         "rate is 0"),
        ("CosineAnnealingLR", {"T_max": 2}, "the learning rate rises again"),
        ("OneCycleLR", {"max_lr": 0.01, "total_steps": 30}, "ends after 30 of 39 steps"),
        ("PolynomialLR", {"total_iters": 3}, None),
        ("LinearLR", {"total_iters": 1}, None),
        ("StepLR", {"step_size": 1}, None),
    ],
)  # fmt: skip
def test_schedule_that_is_over_before_the_run_is_reported(
    digits, train, capsys, type, arguments, message
):
    train(digits({"lr_scheduler": {"type": type, "args": arguments}}), "--epochs", 3)
    output = capsys.readouterr().out
    assert (message or "") in output
    assert (message is not None) == ("ends after" in output)


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(digits, train, resume, capsys):
    run = train(digits(), "--epochs", 3)
    whole = last_checkpoint(run)
    for newest in (run / "checkpoint-epoch3.pth", run / checkpoint.BEST):
        newest.write_bytes(newest.read_bytes()[:5000])
    resume(run)
    printed = capsys.readouterr().err
    assert "checkpoint-epoch3.pth cannot be read" in printed
    assert "model_best.pth cannot be read" in printed
    assert_same(comparable(last_checkpoint(run)), comparable(whole))


TWELVE = """
from data_loader.data_loaders import DigitsDataLoader
class Twelve(DigitsDataLoader):
    "Two more classes, without samples."
    def build_dataset(self, subset, augment):
        data = super().build_dataset(subset, augment)
        data.classes = [*data.classes, "ten", "eleven"]
        return data
"""


def test_new_run_from_old_weights(digits, train, own_code, capsys):
    own_code("twelve", TWELVE)
    old = train(digits({"trainer.ema_decay": 0.9}))
    new = digits({"optimizer.args.lr": 1e-9, "trainer.epochs": 1})
    run = train(new, "-r", old)
    weights = last_checkpoint(old)["ema"]["state_dict"]
    for name, tensor in last_checkpoint(run)["state_dict"].items():
        torch.testing.assert_close(tensor, weights[name])
    assert f"weights of {old}" in capsys.readouterr().out
    run = train(
        digits(
            {
                "arch": "LeNet",
                "data_loader.type": "twelve.Twelve",
                "optimizer.args.lr": 1e-9,
                "trainer.epochs": 1,
            }
        ),
        "-r",
        old,
    )
    assert "outputs kept by their names: 0, 1, 2, 3, 4" in capsys.readouterr().out
    state = last_checkpoint(run)["state_dict"]
    torch.testing.assert_close(state["fc1.weight"], weights["fc1.weight"])
    assert state["fc2.weight"].shape == (12, 50)
    torch.testing.assert_close(state["fc2.weight"][:10], weights["fc2.weight"])


def test_weights_of_another_network_are_refused(digits, train, capsys):
    old = train(digits())
    train(digits({"arch.args.image_size": 32}), "-r", old, code=2)
    assert (
        "does not fit LeNet: fc1.weight is [50, 320] there and [50, 500] here"
        in capsys.readouterr().err
    )
    train(
        digits(
            {"arch": {"type": "torch.nn.Linear", "args": {"in_features": 1, "out_features": 1}}}
        ),
        "-r",
        old,
        code=2,
    )
    assert "holds another network than Linear" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["missing", "empty folder", "text", "weights only", "pickle"])
def test_what_is_not_a_checkpoint_is_an_error_without_traceback(tmp_path, capsys, kind):
    path = tmp_path / "x.pth"
    if kind == "empty folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("hello")
    elif kind == "weights only":
        torch.save(nn.Linear(1, 1).state_dict(), path)
    elif kind == "pickle":
        torch.save({"config": nn.Linear(1, 1)}, path)
    assert train_script.main(["-r", str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert "Traceback" not in error


def test_moved_run_is_resumed_where_it_is(digits, train, resume, tmp_path):
    run = train(digits())
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(run, moved)
    resume(moved, "--epochs", 3)
    assert last_checkpoint(moved)["epoch"] == 3
    assert (moved / "log" / "metrics.csv").exists()


def test_loaded_state_equals_saved_state(digits):
    one = build(digits())
    one.train()
    state = one.state_dict()
    two = build(digits({"seed": 77}))
    two.load_state_dict(state)
    assert_same(comparable(two.state_dict()) | {"rng": 0}, comparable(state) | {"rng": 0})


def test_check_of_a_run_changes_none_of_its_files(digits, train, resume, capsys):
    run = train(digits(), "--epochs", 3)
    files = [
        p for folder in (run, run_folder.log_dir_for(run)) for p in folder.rglob("*") if p.is_file()
    ]
    before = {path: path.read_bytes() for path in files}
    resume(run, "--check", "-s", "trainer.epochs=5")
    assert "check passed" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in files} == before


def test_damaged_best_checkpoint_does_not_stop_the_run(digits, train, resume):
    run = train(digits())
    (run / "model_best.pth").write_bytes(b"damaged")
    resume(run, "--epochs", 3)
    assert last_checkpoint(run)["epoch"] == 3
    assert (run / "replaced" / "model_best.pth").read_bytes() == b"damaged"


def test_best_checkpoint_is_restored_on_resume(digits, train, resume):
    run = train(digits(), "--epochs", 4)
    resume(run / "checkpoint-epoch2.pth", "-s", "trainer.epochs=2")
    assert checkpoint.load(run / "model_best.pth")["epoch"] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--lr", "0.5"],
        ["-s", "optimizer={type: 'SGD', args: {lr: 0.1}}"],
        ["-s", "arch.args.num_classes=12"],
        ["-s", "lr_scheduler=null"],
    ],
)
def test_network_optimizer_and_schedule_are_fixed_for_a_run(
    digits, train, resume, capsys, arguments
):
    run = train(digits())
    resume(run, *arguments, "--epochs", 3, code=2)
    assert "is fixed for a run" in capsys.readouterr().err


def test_another_monitored_number_starts_without_a_best(digits, train, resume):
    run = train(digits({"trainer.monitor": "max val_accuracy"}))
    resume(run, "-s", "trainer.monitor=min val_loss", "trainer.epochs=3")
    assert last_checkpoint(run)["monitor_best"] == pytest.approx(float(rows(run)[-1]["val_loss"]))


def test_resuming_from_within_the_folder_writes_to_the_log_of_the_run(
    digits, train, resume, monkeypatch
):
    run = train(digits())
    monkeypatch.chdir(run)
    resume(".", "--epochs", 3)
    assert len(rows(run)) == 3
    assert not (run / "log").exists()


def test_saved_configuration_is_the_one_in_use(digits, train, resume):
    run = train(digits())
    resume(run, "--epochs", 3)
    assert json.loads((run / "config.json").read_text())["trainer"]["epochs"] == 3


def test_interrupted_epoch_of_another_length_is_refused(digits, train, resume, own_code, capsys):
    own_code("stopper", STOPPER)
    run = train(digits({"trainer.type": "stopper.Stopped", "trainer.at": 8}), code=130)
    resume(run, "--bs", 500, code=2)
    assert "resume with the batch size" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="process groups")
@pytest.mark.usefixtures("workers_for_memory")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_workers_survive_a_signal_to_the_process_group(data_dir, signum):
    from data_loader.data_loaders import DigitsDataLoader
    from utils.engine.signals import StopSignals

    loader = DigitsDataLoader(str(data_dir), batch_size=10, num_workers=2)
    with StopSignals() as signals:
        batches = loader.batches()
        for _ in range(4):  # both workers are up once both have given a batch
            next(batches)
        workers = loader._iterator._workers
        assert all(os.getpgid(worker.pid) != os.getpgid(0) for worker in workers)
        os.kill(os.getpid(), signum)
        assert signals.received == signum
        next(batches)
