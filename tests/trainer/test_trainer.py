"""The training loop, compared with the one people write by hand in torch."""

import copy
import csv
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from base.average import MovingAverage
from tests.conftest import build, last_checkpoint
from utils import checkpoint, run_folder
from utils.engine.engine import unwrap
from utils.errors import UserError

NET = (
    "from torch import nn\n"
    "def plain():\n"
    "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.BatchNorm1d(12), nn.ReLU(),\n"
    "                         nn.Linear(12, 10))\n"
)


@pytest.fixture
def plain(digits, own_code):
    """A configuration whose network draws no random numbers, to compare it with a loop by hand."""
    own_code("plain_net", NET)

    def make(changes=None):
        return digits(
            {
                "arch": "plain_net.plain",
                "trainer.epochs": 3,
                "lr_scheduler": None,
                **(changes or {}),
            }
        )

    return make


def by_hand(trainer, config, epochs=3, step=lambda loss, optimizer, number: None):
    """The usual loop, on a copy of the trainer's network; returns it."""
    model = copy.deepcopy(unwrap(trainer.model))
    kind = config["optimizer"]["type"]
    fused = (
        {"fused": True} if kind == "Adam" else {}
    )  # as ours: torch's kernels differ in the last bit
    optimizer = getattr(torch.optim, kind)(
        model.parameters(), **config["optimizer"]["args"], **fused
    )
    stream = trainer.data_loader.batches()
    for _ in range(epochs):
        model.train()
        for number in range(len(trainer.data_loader)):
            data, target = next(stream)
            step(F.cross_entropy(model(data), target), optimizer, number)
    # after so few steps the running statistics are counted anew, for evaluation
    last = trainer.data_loader.batches((epochs - 1) * len(trainer.data_loader))
    update_bn((data for data, _ in itertools.islice(last, len(trainer.data_loader))), model)
    return model, optimizer


def simple_step(loss, optimizer, number):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def assert_equal_weights(model, reference):
    for (name, ours), theirs in zip(
        model.state_dict().items(), reference.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(
    "optimizer", [("Adam", {"lr": 0.01}), ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True})]
)
def test_loop_equals_a_loop_by_hand(plain, optimizer):
    config = plain({"optimizer": {"type": optimizer[0], "args": optimizer[1]}})
    trainer = build(config)
    reference, _ = by_hand(trainer, config, step=simple_step)
    log = trainer.train()
    assert_equal_weights(trainer.model, reference)
    reference.eval()
    outputs, targets = zip(
        *((reference(data), target) for data, target in trainer.valid_data_loader), strict=True
    )
    output, target = torch.cat(outputs), torch.cat(targets)
    assert log["val_loss"] == pytest.approx(F.cross_entropy(output, target).item(), rel=1e-5)
    assert log["val_accuracy"] == pytest.approx((output.argmax(1) == target).float().mean().item())


def test_training_goes_on_with_the_running_statistics(plain):
    trainer = build(plain())
    model = copy.deepcopy(unwrap(trainer.model))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002, fused=True)
    for data, target in itertools.islice(trainer.data_loader.batches(), 39):
        simple_step(F.cross_entropy(model(data), target), optimizer, 0)
    trainer.train()
    running = trainer.running_statistics  # evaluation has used others after each epoch
    assert running.keys() == {k for k, _ in model.named_buffers()}
    for name, buffer in model.named_buffers():
        assert torch.equal(running[name], buffer), name


def test_clipping_equals_torchs(plain):
    config = plain(
        {"trainer.clip_grad_norm": 0.05, "optimizer": {"type": "SGD", "args": {"lr": 0.5}}}
    )
    trainer = build(config)

    def step(loss, optimizer, number):
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.05)
        optimizer.step()

    reference, _ = by_hand(trainer, config, step=step)
    trainer.train()
    assert_equal_weights(trainer.model, reference)


def test_accumulation_equals_a_loop_by_hand_also_at_the_uneven_end(plain):
    config = plain({"trainer.grad_accum_steps": 3})  # 13 batches: 3 3 3 3 1
    trainer = build(config)

    def step(loss, optimizer, number):
        (loss / (1 if number == 12 else 3)).backward()
        if number % 3 == 2 or number == 12:
            optimizer.step()
            optimizer.zero_grad()

    assert trainer.steps_per_epoch() == 5
    reference, _ = by_hand(trainer, config, step=step)
    trainer.train()
    assert_equal_weights(trainer.model, reference)


def test_accumulating_equals_one_large_batch(digits, own_code):
    own_code(
        "linear_net",
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n",
    )
    changes = {
        "arch": "linear_net.net",
        "data_loader.args.drop_last": True,
        "optimizer": {"type": "SGD", "args": {"lr": 0.1}},
    }
    large = build(digits({**changes, "data_loader.args.batch_size": 160}))
    small = build(
        digits({**changes, "data_loader.args.batch_size": 40, "trainer.grad_accum_steps": 4})
    )
    for trainer in (large, small):
        trainer.len_epoch = 8 if trainer is large else 32
        trainer.train()
    for ours, theirs in zip(small.model.parameters(), large.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_weight_average_equals_torchs_and_is_evaluated(plain):
    config = plain({"trainer.ema_decay": 0.9})
    trainer = build(config)
    averages = []

    def step(loss, optimizer, number):
        simple_step(loss, optimizer, number)
        averages[0].update_parameters(model)

    model = copy.deepcopy(trainer.model)
    averages.append(AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002, fused=True)
    stream = trainer.data_loader.batches()
    for _ in range(3 * len(trainer.data_loader)):
        data, target = next(stream)
        step(F.cross_entropy(model(data), target), optimizer, 0)
    log = trainer.train()
    last = trainer.data_loader.batches(2 * len(trainer.data_loader))
    inputs = (data for data, _ in itertools.islice(last, len(trainer.data_loader)))
    update_bn(inputs, averages[0].module)  # after so few steps
    assert_equal_weights(trainer.evaluated_model, averages[0].module)
    assert_equal_weights(trainer.model, model)
    average = averages[0].module.eval()
    losses = [(F.cross_entropy(average(d), t).item(), len(t)) for d, t in trainer.valid_data_loader]
    assert log["val_loss"] == pytest.approx(
        sum(x * n for x, n in losses) / sum(n for _, n in losses), rel=1e-5
    )


SCHEDULERS = {
    "StepLR": {"step_size": 2, "gamma": 0.5},
    "MultiStepLR": {"milestones": [1, 3]},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {"T_max": 4},
    "CosineAnnealingWarmRestarts": {"T_0": 2},
    "PolynomialLR": {"total_iters": 4},
    "LinearLR": {"total_iters": 3},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 4 * 13},
    "CyclicLR": {"base_lr": 0.001, "max_lr": 0.1, "step_size_up": 7},
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedules_step_as_in_torchs_documentation(plain, name):
    """OneCycleLR and CyclicLR after each batch, the others after each epoch."""
    sgd = {"type": "SGD", "args": {"lr": 0.1, "momentum": 0.9}}
    trainer = build(
        plain(
            {
                "optimizer": sgd,
                "lr_scheduler": {"type": name, "args": SCHEDULERS[name]},
                "trainer.epochs": 4,
            }
        )
    )
    rates, expected = [], []
    trainer.after_backward = lambda: rates.append(trainer.optimizer.param_groups[0]["lr"])
    trainer.train()
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), **sgd["args"])
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **SCHEDULERS[name])
    for _ in range(4):
        for _ in range(13):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if name in ("OneCycleLR", "CyclicLR"):
                scheduler.step()
        if name not in ("OneCycleLR", "CyclicLR"):
            scheduler.step()
    assert rates == expected
    assert len(set(rates)) > 1


def test_rate_of_one_cycle_rises_to_the_optimizers(plain):
    rules = [{"match": "bias", "lr": 0.02}]
    sgd = {"type": "SGD", "args": {"lr": 0.1}, "param_groups": rules}
    config = {"optimizer": sgd, "lr_scheduler": "OneCycleLR", "trainer.epochs": 2}
    trainer = build(plain(config))
    rates = []
    trainer.after_backward = lambda: rates.append(
        sorted(group["lr"] for group in trainer.optimizer.param_groups)
    )
    trainer.train()
    groups = [{"params": torch.nn.Linear(1, 1).parameters(), "lr": lr} for lr in (0.02, 0.1)]
    optimizer = torch.optim.SGD(groups)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.02, 0.1], total_steps=2 * 13)
    for found in rates:
        assert found == [group["lr"] for group in optimizer.param_groups]
        optimizer.step()
        scheduler.step()
    assert len(rates) == 26


def test_any_schedule_can_be_stepped_after_each_batch(plain):
    schedule = {
        "type": "LinearLR",
        "interval": "step",
        "args": {"start_factor": 0.1, "total_iters": 20},
    }
    trainer = build(plain({"lr_scheduler": schedule}))
    rates = []
    trainer.after_backward = lambda: rates.append(trainer.optimizer.param_groups[0]["lr"])
    trainer.train()
    assert rates[:21] == pytest.approx([0.002 * (0.1 + 0.9 * n / 20) for n in range(21)])


def test_one_cycle_finds_its_length_and_accumulation_shortens_it(plain):
    for steps, expected in ((1, 39), (4, 12)):
        config = plain(
            {
                "lr_scheduler": {"type": "OneCycleLR", "args": {"max_lr": 0.1}},
                "trainer.grad_accum_steps": steps,
            }
        )
        trainer = build(config)
        assert trainer.schedule.scheduler.total_steps == expected
        trainer.train()
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / 25 / 1e4)


def test_schedules_of_schedules(plain):
    parts = [
        {"type": "LinearLR", "args": {"start_factor": 0.5, "total_iters": 2}},
        {"type": "ExponentialLR", "args": {"gamma": 0.1}},
    ]
    schedule = {"type": "SequentialLR", "args": {"schedulers": parts, "milestones": [2]}}
    trainer = build(plain({"lr_scheduler": schedule, "trainer.epochs": 4}))
    rates = []
    trainer.before_epoch = lambda epoch: rates.append(trainer.optimizer.param_groups[0]["lr"])
    trainer.train()
    assert rates == pytest.approx([0.001, 0.0015, 0.002, 0.0002])
    chained = {"type": "ChainedScheduler", "args": {"schedulers": parts}}
    assert build(plain({"lr_scheduler": chained})).train()["lr"] == pytest.approx(0.002 * 0.01)


@pytest.mark.parametrize(
    ("monitor", "watched"), [("min val_loss", "val_loss"), ("max val_accuracy", "val_accuracy")]
)
def test_plateau_watches_what_is_monitored(plain, monitor, watched, monkeypatch):
    args = {
        "mode": monitor[:3],
        "patience": 0,
        "threshold": 1.0,
    }  # so demanding that each epoch is a plateau
    config = plain(
        {"lr_scheduler": {"type": "ReduceLROnPlateau", "args": args}, "trainer.monitor": monitor}
    )
    trainer = build(config)
    seen, logs = [], []
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    step = plateau.step
    monkeypatch.setattr(
        plateau, "step", lambda self, value: (seen.append(value), step(self, value))
    )
    trainer.recorder.epoch = lambda epochs, logged, *rest: logs.append(logged[-1])
    trainer.train()
    assert seen == [log[watched] for log in logs]
    assert trainer.optimizer.param_groups[0]["lr"] < 0.002


def test_len_epoch_counts_batches_across_passes(plain):
    trainer = build(plain({"trainer.len_epoch": 9}))  # 13 batches in the data
    seen = []
    step = trainer.task.step
    trainer.rehearse = lambda: None

    def spy(model, batch):
        if torch.is_grad_enabled():  # not a validation
            seen.append(batch[1])
        return step(model, batch)

    trainer.task.step = spy
    trainer.train()
    stream = trainer.data_loader.batches()
    for target in seen:
        assert torch.equal(target, next(stream)[1])
    assert len(seen) == 27


def test_numbers_added_by_train_epoch_are_shown_and_recorded(digits, own_code, train, capsys):
    own_code(
        "own_trainer",
        "from trainer import Trainer\n"
        "class Own(Trainer):\n"
        "    def __init__(self, *args, alpha: float = 0.2, **kwargs):\n"
        "        super().__init__(*args, **kwargs)\n"
        "        self.alpha = alpha\n"
        "    def _train_epoch(self, epoch):\n"
        "        log = super()._train_epoch(epoch)\n"
        "        log.update({'gradient_norm': epoch * self.alpha})\n"
        "        return log\n",
    )
    run = train(
        digits(
            {
                "trainer.type": "own_trainer.Own",
                "trainer.alpha": 0.5,
                "trainer.monitor": "min gradient_norm",
            }
        )
    )
    assert "gradient_norm 0.5" in capsys.readouterr().out
    assert checkpoint.load(run / "model_best.pth")["epoch"] == 1
    with open(run_folder.log_dir_for(run) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["gradient_norm"]) for row in rows] == [0.5, 1.0]


def test_own_trainer_needs_only_train_epoch(digits, own_code, train):
    own_code(
        "bare_trainer",
        "from itertools import islice\n"
        "from base import BaseTrainer\n"
        "class Bare(BaseTrainer):\n"
        "    def _train_epoch(self, epoch):\n"
        "        stream = self.data_loader.batches((epoch - 1) * self.len_epoch)\n"
        "        for data, target in islice(stream, self.len_epoch):\n"
        "            loss = self.criterion(self.model(data), target)\n"
        "            self.engine.backward(loss)\n"
        "            self.engine.optimizer_step(self.optimizer)\n"
        "        return {'loss': loss.item()}\n",
    )
    run = train(digits({"trainer.type": "bare_trainer.Bare", "trainer.monitor": "min loss"}))
    assert last_checkpoint(run)["epoch"] == 2
    assert (run / "model_best.pth").exists()


class Scripted:
    """Stands in for the loop: epoch n logs the n-th of the given values."""

    def __init__(self, trainer, name, values):
        trainer._train_epoch = lambda epoch: {"loss": 1.0}
        trainer._valid_epoch = lambda epoch: {name.removeprefix("val_"): values[epoch - 1]}
        trainer.epochs = len(values)


@pytest.mark.parametrize(
    ("monitor", "values", "best", "ran"),
    [
        (
            "min val_loss",
            [3, 2, 2, 2, 1],
            4,
            4,
        ),  # the latest of equal ones; no improvement, so stopped after two
        ("max val_score", [1, 3, 2, 4, 3, 2], 4, 6),
        ("max val_score", [math.nan, 1, math.nan, math.nan], 2, 4),
        ("off", [1, 2, 3, 4, 5], None, 5),
    ],
)
def test_monitor_and_early_stop(plain, monitor, values, best, ran):
    trainer = build(
        plain({"trainer.monitor": monitor, "trainer.early_stop": 2, "trainer.save_freq": 100})
    )
    Scripted(trainer, monitor.partition(" ")[2] or "val_x", values)
    trainer.train()
    folder = trainer.config.save_dir
    kept = (
        checkpoint.load(folder / "model_best.pth")["epoch"]
        if (folder / "model_best.pth").exists()
        else None
    )
    assert kept == best  # judged in each epoch, also where save_freq saves none
    assert [p.name for p in checkpoint.numbered_checkpoints(folder)] == [
        f"checkpoint-epoch{ran}.pth"
    ]  # the last is always saved


def test_save_freq_and_keep_last(digits, train):
    names = lambda run: sorted(p.name for p in run.glob("checkpoint-*"))  # noqa: E731
    assert names(train(digits(), "-s", "trainer.epochs=5", "trainer.save_freq=2")) == [
        f"checkpoint-epoch{n}.pth" for n in (2, 4, 5)
    ]
    assert names(train(digits(), "-s", "trainer.epochs=5", "trainer.keep_last=2")) == [
        f"checkpoint-epoch{n}.pth" for n in (4, 5)
    ]


def test_nan_loss_stops_the_run_and_keeps_the_last_good_checkpoint(digits, own_code, train, capsys):
    own_code(
        "late_nan",
        "import torch\n"
        "calls = 0\n"
        "def loss(output, target):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    value = torch.nn.functional.cross_entropy(output, target)\n"
        "    return value * (float('nan') if calls > 40 else 1)\n",
    )
    run = train(digits({"loss": "late_nan.loss"}), "--epochs", 9, code=1)
    error = capsys.readouterr().err
    assert "loss became nan in epoch 3" in error
    assert str(run / "checkpoint-epoch2.pth") in error
    state = last_checkpoint(run)
    assert state["epoch"] == 2
    assert all(torch.isfinite(weight).all() for weight in state["state_dict"].values())


def test_check_runs_a_batch_and_leaves_nothing(digits, train, capsys, tmp_path):
    assert train(digits({"trainer.epochs": 50}), "--check") is None
    assert "check passed" in capsys.readouterr().out
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"arch.args.image_size": 32},
            "LeNet cannot take the first batch (100x1x28x28",
        ),
        ({"arch.args.num_classes": 5}, "gives 5 outputs, but there are 10 classes"),
        (
            {"loss": "mse_loss"},
            "loss: mse_loss compares number by number, but the network's output is 100x10 float32 "
            "and the targets are 100 int64",
        ),
        (
            {"metrics": [{"type": "F1Score", "args": {"task": "multiclass", "num_classes": 3}}]},
            "F1Score does not fit",
        ),
        (
            {"lr_scheduler": {"type": "ReduceLROnPlateau", "interval": "step"}},
            "needs the numbers of a whole epoch",
        ),
    ],
)
def test_parts_that_do_not_fit_are_errors_before_training(digits, train, capsys, changes, message):
    for flags in ([], ["--check"], ["--profile", 2]):
        train(digits(changes), *flags, code=2)
        error = capsys.readouterr().err
        assert message in error, flags
        assert "Traceback" not in error


def test_logged_numbers_of_any_kind_become_floats(plain, own_code):
    import numpy as np

    trainer = build(plain({"trainer.monitor": "min loss", "trainer.epochs": 1}))
    trainer._train_epoch = lambda epoch: {"loss": np.float64(0.5), "norm": torch.tensor(2.0)}
    log = trainer.train()
    assert (type(log["loss"]), type(log["norm"])) == (float, float)
    assert last_checkpoint(trainer.config.save_dir)["monitor_best"] == 0.5
    trainer = build(plain({"trainer.epochs": 1}))
    trainer._train_epoch = lambda epoch: {"loss": "low"}
    with pytest.raises(UserError, match="one number"):
        trainer.train()


def test_own_loop_over_the_loader_gets_the_order_of_each_epoch(plain):
    trainer = build(plain())
    orders = []
    trainer._train_epoch = lambda epoch: (
        orders.append([t.tolist() for _, t in trainer.data_loader]) or {"loss": 1.0, "val_loss": 1}
    )
    trainer.train()
    stream = trainer.data_loader.batches()
    assert orders == [[next(stream)[1].tolist() for _ in range(13)] for _ in range(3)]


def test_cycle_stepped_after_each_epoch_counts_epochs(plain):
    schedule = {"type": "OneCycleLR", "interval": "epoch", "args": {"max_lr": 0.1}}
    assert (
        build(plain({"lr_scheduler": schedule, "trainer.epochs": 9})).schedule.scheduler.total_steps
        == 9
    )
    chained = {
        "type": "ChainedScheduler",
        "args": {"schedulers": [{"type": "OneCycleLR", "args": {"max_lr": 0.1}}]},
    }
    assert build(plain({"lr_scheduler": chained})).schedule.interval == "step"


def test_randomness_of_an_epoch_does_not_depend_on_earlier_draws(digits):
    """Dropout is the same whether or not the validation draws random numbers."""
    quiet, noisy = build(digits()), build(digits())
    validate = noisy._valid_epoch
    noisy._valid_epoch = lambda epoch: (torch.rand(7), validate(epoch))[1]
    quiet.train(), noisy.train()
    assert_equal_weights(noisy.model, quiet.model)


def test_average_waits_for_no_gpu():
    """Fake tensors cannot be read, so whatever reads one fails."""
    with FakeTensorMode():
        average = MovingAverage(nn.Module(), 0.9)
        with torch.device("cuda"):  # fake tensors cannot be copied with their module
            network, average.module = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        for _ in range(2):
            average.update_parameters(network)
        assert average.n_averaged == 2
        with pytest.raises(DataDependentOutputException):
            average.module.weight.sum().item()
