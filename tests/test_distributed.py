"""Several processes do what one does: the same samples, the same gradients, the same numbers. On gloo, on this machine."""

import csv
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from base import BaseDataLoader
from data_loader.data_loaders import DigitsDataLoader
from parse_config import ConfigParser
from tests.conftest import ROOT, assert_same, build, last_checkpoint, runs
from trainer.start import enlarge_batches
from utils import checkpoint, distributed, launch
from utils.engine import Engine, unwrap
from utils.errors import RunError, UserError

# Without dropout, which no two processes draw alike.
NETWORKS = """
from torch import nn
def plain(width: int = 6):
    return nn.Sequential(nn.Conv2d(1, width, 5, 4), nn.GELU(), nn.Flatten(), nn.Linear(36 * width, 10))
class Idle(nn.Sequential):
    def __init__(self):
        super().__init__(*plain())
        self.idle = nn.Linear(3, 3)
    def forward(self, x):
        for layer in list(self)[:4]:
            x = layer(x)
        return x
"""
F1 = {"type": "F1Score", "args": {"task": "multiclass", "num_classes": 10, "average": "macro"}}
AUROC = {"type": "AUROC", "args": {"task": "multiclass", "num_classes": 10}}
LAST_OF_ONE = {"data_loader.args.batch_size": 431}  # 1294 training samples: one process has no share of the last batch
ACCUMULATED = {"data_loader.args.batch_size": 65, "trainer.grad_accum_steps": 3, "trainer.clip_grad_norm": 0.5}
AVERAGED = {"trainer.ema_decay": 0.9, "trainer.len_epoch": 9, "metrics": ["accuracy", F1, AUROC]}
THAWED = {"arch": {"type": "networks.plain", "freeze": "backbone", "unfreeze_at": 2}}
FEATURES = {"arch": {"type": "networks.plain", "freeze": "backbone"}}


def several(count, action, *arguments):
    """What `action(*arguments)` returns in each of `count` processes, which find one another as torchrun's do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # torch is imported already

    def run(rank, sender):
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        try:
            sender.send(action(*arguments))
        except BaseException as error:
            traceback.print_exc()
            sender.send(repr(error))

    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [context.Process(target=run, args=(rank, sender)) for rank, (_, sender) in enumerate(pipes)]
    for process in processes:
        process.start()
    try:
        assert all(receiver.poll(100) for receiver, _ in pipes), "they hang"
        return [receiver.recv() for receiver, _ in pipes]
    finally:
        for process in processes:
            process.join(10)
            process.kill()


def joined(action):
    def run(*arguments):
        with distributed.joined(on_cpu=True):
            return action(*arguments)

    return run


@pytest.fixture
def train_in(tmp_path):
    """A function that trains in several processes and returns the run's folder."""
    import train as script

    def run(count, config, *arguments, code=0):
        file = tmp_path / "config.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        before = runs(tmp_path)
        arguments = arguments if "-r" in arguments else ("-c", str(file), *arguments)
        assert several(count, script.main, [str(a) for a in arguments]) == [code] * count
        made = sorted(set(runs(tmp_path)) - set(before))
        assert len(made) <= 1
        return made[0] if made else None

    return run


@pytest.fixture
def plain(digits, own_code):
    """A function that gives the configuration of a network that is the same in any number of processes."""
    own_code("networks", NETWORKS)

    def make(changes=None, **sections):
        return digits({"arch": "networks.plain", "trainer.epochs": 3, **(changes or {})}, **sections)

    return make


def logged(run):
    with open(checkpoint.log_dir_of(run) / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: float(v) for k, v in row.items() if k not in ("seconds", "samples_per_second")} for row in rows]


def assert_near(run, other, weights=1e-4):
    """Equal metrics, losses within 1e-5, weights that differ by no more than sums in another order explain."""
    for one, two in zip(logged(run), logged(other), strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            tolerance = (
                1e-5 if "loss" in name or "auroc" in name.lower() else 1e-6
            )  # metrics are of float32; a sample more counts 1e-3
            assert two[name] == pytest.approx(value, abs=tolerance), name
    states = [last_checkpoint(folder)["state_dict"] for folder in (run, other)]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=weights, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [{"data_loader.args.batch_size": 64}, LAST_OF_ONE, ACCUMULATED, AVERAGED, THAWED, FEATURES],
    ids=["even", "none-left", "accumulated", "averaged", "thawed", "features"],
)
def test_two_processes_train_as_one(plain, train, train_in, changes):
    one, two = train(plain(changes)), train_in(2, plain(changes))
    assert_near(one, two)
    assert logged(one)[-1]["val_loss"] < logged(one)[0]["val_loss"]


def test_all_have_the_same_weights_and_judge_the_same(plain):
    def action():
        trainer = build(plain({"data_loader.args.batch_size": 65, "arch": "LeNet"}))
        log = trainer.train()
        state = unwrap(trainer.model).state_dict()
        del log["seconds"], log["samples_per_second"]
        return log, {name: tensor.numpy() for name, tensor in state.items()}, torch.rand(3).tolist()

    first, *others = several(3, joined(action))
    for log, state, drawn in others:
        assert log == first[0]
        assert all(np.array_equal(state[name], value) for name, value in first[1].items())
        assert drawn != first[2]  # dropout is each one's own


STOPPER = """
import os, signal
from trainer import Trainer
from utils import distributed
class Stopped(Trainer):
    def __init__(self, *args, at: int = 0, **kwargs):
        super().__init__(*args, **kwargs)
        self.at, self.seen = at, 0
    def after_backward(self):
        self.seen += 1
        if self.seen == self.at and distributed.rank() == distributed.world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
    def _valid_epoch(self, epoch):
        if epoch == -self.at and distributed.rank() == distributed.world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super()._valid_epoch(epoch)
"""


@pytest.mark.parametrize("at", [16, -2], ids=["training", "validation"])
def test_a_signal_to_one_stops_all_and_they_go_on_exactly(digits, train_in, own_code, at):
    own_code("stopper", STOPPER)
    changes = {"trainer.type": "stopper.Stopped", "trainer.epochs": 3, "metrics": ["accuracy", F1, AUROC]}
    whole = train_in(2, digits(changes))  # with dropout
    half = train_in(2, digits({**changes, "trainer.at": at}), code=143)
    assert last_checkpoint(half)["trainer"]["step"] == (4 if at > 0 else 13)
    train_in(2, {}, "-r", half, "-s", "trainer.at=0")
    one, two = (last_checkpoint(run) for run in (half, whole))
    for key in ("state_dict", "optimizer", "trainer", "rng", "lr_scheduler"):
        assert_same(one[key], two[key], key)
    assert logged(half) == logged(whole)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_a_run_goes_on_in_another_number_of_processes(plain, train, train_in, own_code, capfd, before, after):
    own_code("stopper", STOPPER)
    changes = {"trainer.type": "stopper.Stopped", "metrics": ["accuracy", F1], "data_loader.args.batch_size": 65}
    whole = train(plain(changes))
    half = train_in(before, plain({**changes, "trainer.at": 27}), code=143)
    train_in(after, {}, "-r", half, "-s", "trainer.at=0")
    assert re.search(rf"trained by {before} process(es)?, and goes on with {after}", capfd.readouterr().out)
    assert_near(whole, half)


def names_of(loader, rank, world, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    return loader(), [list(batch) for batch in loader().batch_sampler]


@pytest.mark.parametrize(("batch_size", "drop_last"), [(7, False), (64, False), (64, True), (431, False), (1293, False)])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_each_sample_is_one_processs(data_dir, monkeypatch, batch_size, drop_last, world):
    """Against torch's BatchSampler over the order of the epoch."""

    def loader():
        return DigitsDataLoader(str(data_dir), batch_size=batch_size, validation_split=0.1, drop_last=drop_last, seed=3)

    plain = list(torch.utils.data.BatchSampler(loader().sampler.order(0).tolist(), batch_size, drop_last))
    parts = [names_of(loader, rank, world, monkeypatch) for rank in range(world)]
    for rank, (made, batches) in enumerate(parts):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        assert len(made) == len(batches) == len(plain)  # none runs ahead of the others
        for number, batch in enumerate(plain):
            own = round(made.share_of(number) * len(batch) / world)
            assert made.share_of(number) == pytest.approx(own * world / len(batch))  # so the means' mean is the whole's
            assert abs(own - len(batch) / world) < 1
            assert len(batches[number]) == max(own, 1)
            batches[number] = [position for _, position, _ in batches[number]][:own]
    together = [[position for _, batches in parts for position in batches[number]] for number in range(len(plain))]
    assert together == plain


def test_in_evaluation_nobody_is_given_what_is_anothers(data_dir, monkeypatch):
    def loader():
        return DigitsDataLoader(str(data_dir), batch_size=358, subset="test")  # 359: the last batch is one sample

    seen = [position for rank in range(2) for b in names_of(loader, rank, 2, monkeypatch)[1] for _, position, _ in b]
    assert sorted(seen) == list(range(359))


class Noisy(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.full((2,), float(index)) + torch.rand(2), index


class NoisyLoader(BaseDataLoader):
    def build_dataset(self, subset, augment):
        return Noisy()


def test_augmentation_does_not_depend_on_the_number_of_processes(monkeypatch):
    def served(rank, world):
        names_of(lambda: NoisyLoader(batch_size=4), rank, world, monkeypatch)
        data = [pair for batch in NoisyLoader(batch_size=4, seed=1) for pair in zip(*batch, strict=True)]
        return {int(target): noise for noise, target in data}

    assert_same(dict(sorted((served(0, 2) | served(1, 2)).items())), dict(sorted(served(0, 1).items())))


def test_words_between_processes():
    def action():
        number = distributed.rank()
        question, answers = distributed.Question(), []
        for step in range(4):
            answers.append(question(15 if number == 1 and step >= 1 else 0))
        with distributed.first_on_each_machine():
            moment = time.monotonic()
        same = nn.Linear(2, 2) if number else nn.Linear(2, 3)
        try:
            Engine("cpu").prepare(same)
            refused = None
        except RunError as error:
            refused = str(error)
        return (
            distributed.from_first({"loss": 0.1 + number, "bad": float("inf"), "text": "型" * (number + 1)}),
            distributed.of_all([number] * number),
            distributed.once("folder", lambda: f"made by {number}"),
            float(distributed.total(torch.tensor(float(number)))),
            answers,
            moment,
            refused,
        )

    results = several(3, joined(action))
    for first, everyone, made, total, answers, _, refused in results:
        assert first == {"loss": 0.1, "bad": float("inf"), "text": "型"}
        assert everyone == [[], [1], [2, 2]]
        assert (made, total) == ("made by 0", 3.0)
        assert answers == [0, 0, 15, 15]  # those of the call before
        assert refused == "the network is not the same on all processes"
    assert results[0][5] < min(results[1][5], results[2][5])


def test_initial_weights_are_the_first_ones():
    def action():
        torch.manual_seed(distributed.rank())
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        network[1].running_mean.fill_(distributed.rank())
        return {k: v.numpy() for k, v in unwrap(Engine("cpu").prepare(network)).state_dict().items()}

    one, two = several(2, joined(action))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    torch.manual_seed(0)
    assert np.array_equal(one["0.weight"], nn.Conv2d(3, 4, 3).weight.detach().numpy())


def test_between_steps_gradients_stay_where_they_are():
    def action():
        engine = Engine("cpu")
        model, gradients = engine.prepare(nn.Linear(2, 1, bias=False)), []
        for more in (True, False):
            with engine.accumulating(model, more):
                model(torch.full((1, 2), 1.0 + distributed.rank())).sum().backward()
            gradients.append(unwrap(model).weight.grad.flatten().tolist())
        return gradients

    assert several(2, joined(action)) == [[[1, 1], [3, 3]], [[2, 2], [3, 3]]]


def test_mistakes_are_sentences(plain, digits, train_in, capfd):
    train_in(2, digits({"engine": {"sync_batchnorm": True}}), code=2)
    assert "SyncBatchNorm needs GPUs" in capfd.readouterr().err
    train_in(2, digits({"data_loader.args.batch_size": 1}), code=2)
    assert "batch_size 1 is not one for each of 2 processes" in capfd.readouterr().err
    idle = plain({"arch": "networks.Idle", "trainer.epochs": 1})
    train_in(2, idle, code=1)
    error = capfd.readouterr().err
    assert "set engine.find_unused_parameters" in error
    assert "Traceback" not in error
    train_in(2, idle | {"engine": {"find_unused_parameters": True}})


def test_one_that_dies_ends_the_others(plain, own_code, tmp_path, capfd):
    own_code(
        "dying",
        "import os\nfrom trainer import Trainer\nfrom utils import distributed\n"
        "class Dying(Trainer):\n"
        "    def after_backward(self):\n"
        "        if distributed.rank() == 0 and self.step == 7:\n"
        "            os._exit(9)\n",
    )
    file = tmp_path / "config.json"
    file.write_text(json.dumps(plain({"trainer.type": "dying.Dying"})), encoding="utf-8")
    import train as script

    def action():
        if os.environ["RANK"] == "1":
            return script.main(["-c", str(file)])
        child = os.fork()  # so that this one is left to report
        if child == 0:
            script.main(["-c", str(file)])
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert several(2, action) == [9, 1]
    error = capfd.readouterr().err
    assert "another process of the run has ended, so this one ends too" in error
    assert "Traceback" not in error


def test_check_and_test_under_the_same_launch(digits, train, train_in, capfd):
    run = train(digits())
    train_in(2, digits(), "--check")
    import test as script

    capfd.readouterr()
    assert several(2, script.main, ["-r", str(run)]) == [0, 0]
    assert capfd.readouterr().out.count("accuracy") == 1


def test_batch_size_of_each_process(digits):
    changes = {
        "engine": {"batch_size": "process", "scale_lr": True, "precision": "fp32"},
        "optimizer": {"type": "SGD", "args": {"lr": 0.1}, "param_groups": [{"match": "^fc2", "lr": 0.5}]},
        "valid_data_loader": {"type": "DigitsDataLoader", "args": {}},
    }
    config = ConfigParser(digits(changes))
    enlarge_batches(config, 4)
    assert config["data_loader"]["args"]["batch_size"] == 400
    assert config["valid_data_loader"]["args"]["batch_size"] == 256
    assert config["optimizer"]["args"]["lr"] == pytest.approx(0.4)
    assert config["optimizer"]["param_groups"] == [{"match": "^fc2", "lr": 2.0}]
    assert config["engine"] == {"precision": "fp32"}  # so that a run goes on with the batches it began with
    enlarge_batches(config, 4)
    assert config["data_loader"]["args"]["batch_size"] == 400
    unscaled = ConfigParser(digits({"engine": {"batch_size": "process"}}))
    enlarge_batches(unscaled, 4)
    assert unscaled["optimizer"]["args"]["lr"] == 0.002


@pytest.mark.parametrize(
    ("device", "n_gpu", "procs", "gpus", "count"),
    [
        (None, 1, None, 8, 1),
        (None, 2, None, 8, 2),
        ("2,3", 1, None, 8, 2),
        ("0,1,2", 1, None, 2, 2),
        ("0,1", 1, None, 0, 1),
        ("cpu", 2, None, 8, 1),
        ("cpu", 1, 3, 8, 3),
        (None, 0, 2, 8, 2),
        ("0,1", 1, 2, 8, 2),
        (None, 1, 2, 0, 2),
    ],
)
def test_how_many_processes_are_started(monkeypatch, device, n_gpu, procs, gpus, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    asked = SimpleNamespace(device=device, procs=procs)
    assert launch.processes_to_start(asked, n_gpu) == count
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launch.processes_to_start(asked, n_gpu) == 1


@pytest.mark.parametrize(("device", "procs"), [("0,1", 3), ("0,0", None), ("cpu", 0), ("0;1", None)])
def test_what_cannot_be_started(monkeypatch, device, procs):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError):
        launch.processes_to_start(SimpleNamespace(device=device, procs=procs), 1)


def test_slurms_words(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    step = {
        "SLURM_PROCID": 5,
        "SLURM_LOCALID": 1,
        "SLURM_NTASKS": 8,
        "SLURM_JOB_ID": 77,
        "SLURM_STEP_NODELIST": "gpu[07-09]",
    }
    for name, value in step.items():
        monkeypatch.setenv(name, str(value))
    assert launch.place() == (0, 0, 1)  # a batch script, which srun did not start
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    assert launch.place() == (5, 1, 8)
    address, port = launch.meeting_point()
    assert address == "gpu07"
    assert 15000 <= port < 30000
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launch.place() == (0, 0, 2)  # torchrun, within SLURM


@pytest.mark.parametrize(
    ("listing", "first"),
    [
        ("node1", "node1"),
        ("a-1,a-2", "a-1"),
        ("n[07-09,12],gpu1", "n07"),
        ("n[3,5]", "n3"),
        ("rack-2-n[11-12]", "rack-2-n11"),
    ],
)
def test_first_host(listing, first):
    assert launch.first_host(listing) == first


def test_gpus_that_are_not_there(digits, train, capsys):
    if torch.cuda.is_available():
        pytest.skip("there are some")
    train(digits(), "-d", "0,1")
    assert "GPU 0, 1 asked for, but this machine has none; using the CPU" in capsys.readouterr().out


def launched(tmp_path, config, *arguments, wait=True):
    """train.py as a person starts it."""
    file = tmp_path / "launched.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    words = [sys.executable, str(ROOT / "train.py"), "-c", str(file), "-d", "cpu", "--procs", "2", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(words, env=environment, cwd=tmp_path, **streams)
    if wait:
        out, _ = process.communicate(timeout=300)
        return process.returncode, out
    return process


def children(process):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    return [int(pid) for pid in found.split()]


def test_the_command_starts_processes(plain, train, own_code, tmp_path):
    own_code(
        "meeting",
        "import os\nfrom trainer import Trainer\n"
        "class Meeting(Trainer):\n"
        "    def before_epoch(self, epoch):\n"
        "        print('met at', os.environ['MASTER_ADDR'])\n",
    )
    whole = train(plain())
    code, out = launched(tmp_path, plain({"trainer.type": "meeting.Meeting"}))
    assert code == 0, out
    assert "met at localhost" in out  # the machine's own name need not resolve
    assert "Traceback" not in out
    assert out.count("epoch 3/3") == 1
    assert_near(whole, runs(tmp_path)[-1])


def test_two_processes_prune_as_one(plain, train, tmp_path, capfd):
    import prune as script

    trained = train(plain({"data_loader.args.batch_size": 64}, arch={"type": "networks.plain", "args": {"width": 16}}))
    config = plain(
        {"data_loader.args.batch_size": 64, "trainer.epochs": 1, "trainer.last_epochs": 2},
        arch={"type": "networks.plain", "args": {"width": 16}},
        pruner={
            "type": "MagnitudePruner",
            "args": {"iterative_steps": 2, "target": {"macs": 0.5}, "round_to": 1, "importance": "TaylorImportance"},
        },
    )
    (tmp_path / "prune.json").write_text(json.dumps(config))
    made = []
    for count in (1, 2):
        before = set(runs(tmp_path))
        assert several(count, script.main, ["-c", str(tmp_path / "prune.json"), "-r", str(trained)]) == [0] * count
        made += set(runs(tmp_path)) - before
    assert_near(*made)
    one, two = (last_checkpoint(run) for run in made)
    assert one["structure"] == two["structure"]
    tables = []
    for run in made:
        with open(run / "prune" / "steps.csv", encoding="utf-8-sig", newline="") as file:
            tables.append(list(csv.DictReader(file)))
    for row, other in zip(*tables, strict=True):
        for column in ("macs", "accuracy_before", "accuracy"):  # of all validation samples, not of a share
            assert row[column] == other[column]
    assert (made[1] / "prune" / "report.html").exists()
    impossible = ["-c", str(tmp_path / "prune.json"), "-r", str(trained), "-s", "pruner.args.target.macs=0.0001"]
    assert several(2, script.main, impossible) == [2, 2]  # found by the first, told by all
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_one_of_two_is_killed_and_the_run_goes_on(plain, train, tmp_path):
    whole = train(plain({"trainer.epochs": 40}))
    process = launched(tmp_path, plain({"trainer.epochs": 40}), "--max-restarts", "2", wait=False)
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith(("epoch  5/", "epoch 20/")):
            time.sleep(0.2)
            os.kill(children(process)[len(seen) % 2], signal.SIGKILL)
    assert process.wait(100) == 0, "".join(seen)
    assert sum(line.startswith("continuing") for line in seen) == 2
    run = runs(tmp_path)
    assert len(run) == 2
    assert_near(whole, run[-1], weights=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_to_the_command(plain, tmp_path, signum, code):
    process = launched(tmp_path, plain({"trainer.epochs": 5000}), wait=False)
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("epoch    3/"):
            process.send_signal(signum)
    assert process.wait(100) == code, "".join(seen)
    assert "everything is saved. Go on with:" in "".join(seen)
    assert "Traceback" not in "".join(seen)
    assert last_checkpoint(runs(tmp_path)[0])["trainer"]["processes"] == 2
