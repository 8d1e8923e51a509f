"""Several processes do what one does: the same samples, gradients and numbers. On gloo."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from base import BaseDataLoader
from data_loader.data_loaders import DigitsDataLoader
from parse_config import ConfigParser
from tests.conftest import ROOT, assert_same, build, last_checkpoint, runs
from tests.utils.processes import NETWORKS, assert_near, logged, run_processes
from utils.config.resolve import multiply_batches
from utils.engine import distributed, launch
from utils.engine.engine import Engine, unwrap
from utils.errors import ConfigError, RunError, UserError

F1 = {"type": "F1Score", "args": {"task": "multiclass", "num_classes": 10, "average": "macro"}}
AUROC = {"type": "AUROC", "args": {"task": "multiclass", "num_classes": 10}}
# 1294 training samples: one process has no share of the last batch
ODD_LAST_BATCH = {"data_loader.args.batch_size": 431}
ACCUMULATED = {
    "data_loader.args.batch_size": 65,
    "trainer.grad_accum_steps": 3,
    "trainer.clip_grad_norm": 0.5,
}
AVERAGED = {"trainer.ema_decay": 0.9, "trainer.len_epoch": 9, "metrics": ["accuracy", F1, AUROC]}
THAWED = {"arch": {"type": "networks.plain", "freeze": "backbone", "unfreeze_at": 2}}
FEATURES = {"arch": {"type": "networks.plain", "freeze": "backbone"}}


def in_group(action):
    """`action` inside the process group."""

    def run(*arguments):
        with distributed.process_group(on_cpu=True):
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
        assert run_processes(count, script.main, [str(a) for a in arguments]) == [code] * count
        created = sorted(set(runs(tmp_path)) - set(before))
        assert len(created) <= 1
        return created[0] if created else None

    return run


@pytest.fixture
def plain(digits, own_code):
    """A function that gives the configuration of a network without dropout."""
    own_code("networks", NETWORKS)

    def make(changes=None, **sections):
        return digits(
            {"arch": "networks.plain", "trainer.epochs": 3, **(changes or {})}, **sections
        )

    return make


@pytest.mark.parametrize(
    "changes",
    [{"data_loader.args.batch_size": 64}, ODD_LAST_BATCH, ACCUMULATED, AVERAGED, THAWED, FEATURES],
    ids=["even", "none-left", "accumulated", "averaged", "thawed", "features"],
)
def test_two_processes_train_as_one(plain, train, train_in, changes):
    one, two = train(plain(changes)), train_in(2, plain(changes))
    assert_near(one, two)
    assert logged(one)[-1]["val_loss"] < logged(one)[0]["val_loss"]


def test_all_processes_have_the_same_weights_and_metrics(plain):
    def action():
        trainer = build(plain({"data_loader.args.batch_size": 65, "arch": "LeNet"}))
        log = trainer.train()
        state = unwrap(trainer.model).state_dict()
        del log["seconds"], log["samples_per_second"]
        return log, {name: tensor.numpy() for name, tensor in state.items()}, torch.rand(3).tolist()

    first, *others = run_processes(3, in_group(action))
    for log, state, drawn in others:
        assert log == first[0]
        assert all(np.array_equal(state[name], value) for name, value in first[1].items())
        assert drawn != first[2]  # each process has its own dropout


STOPPER = """
import os, signal
from trainer import Trainer
from utils.engine import distributed
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


@pytest.mark.parametrize(
    "at", [16, pytest.param(-2, marks=pytest.mark.slow)], ids=["training", "validation"]
)
def test_signal_to_one_process_stops_all_and_resumed_run_equals_unbroken_run(
    digits, train_in, own_code, at
):
    own_code("stopper", STOPPER)
    changes = {
        "trainer.type": "stopper.Stopped",
        "trainer.epochs": 3,
        "metrics": ["accuracy", F1, AUROC],
    }
    whole = train_in(2, digits(changes))  # with dropout
    half = train_in(2, digits({**changes, "trainer.at": at}), code=143)
    assert last_checkpoint(half)["trainer"]["step"] == (4 if at > 0 else 13)
    train_in(2, {}, "-r", half, "-s", "trainer.at=0")
    one, two = (last_checkpoint(run) for run in (half, whole))
    for key in ("state_dict", "optimizer", "trainer", "rng", "lr_scheduler"):
        assert_same(one[key], two[key], key)
    assert logged(half) == logged(whole)


@pytest.mark.parametrize(
    ("before", "after"),
    [(2, 1), *(pytest.param(*n, marks=pytest.mark.slow) for n in [(1, 2), (2, 3)])],
)
def test_run_resumes_in_another_number_of_processes(
    plain, train, train_in, own_code, capfd, before, after
):
    own_code("stopper", STOPPER)
    changes = {
        "trainer.type": "stopper.Stopped",
        "metrics": ["accuracy", F1],
        "data_loader.args.batch_size": 65,
    }
    whole = train(plain(changes))
    half = train_in(before, plain({**changes, "trainer.at": 27}), code=143)
    train_in(after, {}, "-r", half, "-s", "trainer.at=0")
    assert f"trained by {before} process(es) so far, now by {after}" in capfd.readouterr().out
    assert_near(whole, half)


def loader_and_batches(loader, rank, world, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    return loader(), [list(batch) for batch in loader().batch_sampler]


@pytest.mark.parametrize(
    ("batch_size", "drop_last"), [(7, False), (64, False), (64, True), (431, False), (1293, False)]
)
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_each_sample_belongs_to_one_process(data_dir, monkeypatch, batch_size, drop_last, world):
    """Against torch's BatchSampler over the order of the epoch."""

    def loader():
        return DigitsDataLoader(
            str(data_dir), batch_size=batch_size, validation_split=0.1, drop_last=drop_last, seed=3
        )

    plain = list(
        torch.utils.data.BatchSampler(loader().sampler.order(0).tolist(), batch_size, drop_last)
    )
    parts = [loader_and_batches(loader, rank, world, monkeypatch) for rank in range(world)]
    for rank, (created, batches) in enumerate(parts):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        assert len(created) == len(batches) == len(plain)  # no process runs ahead of the others
        for number, batch in enumerate(plain):
            count = round(created.batch_weight(number) * len(batch) / world)
            # so the mean of the processes' means is the mean of the whole batch
            assert created.batch_weight(number) == pytest.approx(count * world / len(batch))
            assert abs(count - len(batch) / world) < 1
            assert len(batches[number]) == max(count, 1)
            batches[number] = [position for _, position, _ in batches[number]][:count]
    joined = [
        [position for _, batches in parts for position in batches[number]]
        for number in range(len(plain))
    ]
    assert joined == plain


def test_evaluation_serves_each_sample_once(data_dir, monkeypatch):
    def loader():
        # 359 samples: the last batch is a single one
        return DigitsDataLoader(str(data_dir), batch_size=358, subset="test")

    seen = [
        position
        for rank in range(2)
        for b in loader_and_batches(loader, rank, 2, monkeypatch)[1]
        for _, position, _ in b
    ]
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
        loader_and_batches(lambda: NoisyLoader(batch_size=4), rank, world, monkeypatch)
        data = [
            pair for batch in NoisyLoader(batch_size=4, seed=1) for pair in zip(*batch, strict=True)
        ]
        return {int(target): noise for noise, target in data}

    assert_same(
        dict(sorted((served(0, 2) | served(1, 2)).items())), dict(sorted(served(0, 1).items()))
    )


def test_values_between_processes():
    def action():
        number = distributed.rank()
        largest, answers = distributed.AsyncMax(), []
        for step in range(4):
            answers.append(largest(15 if number == 1 and step >= 1 else 0))
        with distributed.local_main_first():
            moment = time.monotonic()
        try:
            Engine("cpu").prepare(nn.Linear(2, 2) if number else nn.Linear(2, 3))
            refused = None
        except RunError as error:
            refused = str(error)
        return (
            distributed.broadcast(
                {"loss": 0.1 + number, "bad": float("inf"), "text": "型" * (number + 1)}
            ),
            distributed.all_gather([number] * number),
            distributed.broadcast_once("folder", lambda: f"created by {number}"),
            float(distributed.all_reduce_sum(torch.tensor(float(number)))),
            answers,
            moment,
            refused,
        )

    results = run_processes(3, in_group(action))
    for first, everyone, created, total, answers, _, refused in results:
        assert first == {"loss": 0.1, "bad": float("inf"), "text": "型"}
        assert everyone == [[], [1], [2, 2]]
        assert (created, total) == ("created by 0", 3.0)
        assert answers == [0, 0, 15, 15]  # of the call before
        assert refused == "the network is not the same on all processes"
    assert results[0][5] < min(results[1][5], results[2][5])


def test_error_of_the_main_process_is_raised_by_all():
    def action():
        def fail():
            raise ConfigError("config.json", ["seed: should be a number", "arch: is missing"])

        try:
            distributed.run_on_main(fail)
        except ConfigError as error:
            return str(error), distributed.run_on_main(distributed.rank)

    message = "config.json has 2 errors:\n  seed: should be a number\n  arch: is missing"
    assert run_processes(2, in_group(action)) == [(message, 0)] * 2


def test_gathered_tensors_of_unequal_processes():
    def action():
        number = distributed.rank()
        # torchmetrics' state where a process had no samples: neither shape nor dtype is right
        values = torch.full((number, 3), number) if number else torch.tensor([])
        everyone = distributed.gather_tensors(values)
        return torch.cat(everyone).tolist(), {str(part.dtype) for part in everyone}

    expected = [[1] * 3] + [[2] * 3] * 2
    assert run_processes(3, in_group(action)) == [(expected, {"torch.int64"})] * 3


def test_initial_weights_are_those_of_rank_zero():
    def action():
        torch.manual_seed(distributed.rank())
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        network[1].running_mean.fill_(distributed.rank())
        return {
            k: v.numpy() for k, v in unwrap(Engine("cpu").prepare(network)).state_dict().items()
        }

    one, two = run_processes(2, in_group(action))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    torch.manual_seed(0)
    assert np.array_equal(one["0.weight"], nn.Conv2d(3, 4, 3).weight.detach().numpy())


def test_gradients_are_exchanged_once_per_step():
    def action():
        engine = Engine("cpu")
        model, gradients = engine.prepare(nn.Linear(2, 1, bias=False)), []
        for more in (True, False):
            with engine.accumulating(model, more):
                model(torch.full((1, 2), 1.0 + distributed.rank())).sum().backward()
            gradients.append(unwrap(model).weight.grad.flatten().tolist())
        return gradients

    assert run_processes(2, in_group(action)) == [[[1, 1], [3, 3]], [[2, 2], [3, 3]]]


def test_mistakes_are_messages_without_traceback(plain, digits, train_in, capfd):
    train_in(2, digits({"engine": {"sync_batchnorm": True}}), code=2)
    assert "SyncBatchNorm needs GPUs" in capfd.readouterr().err
    train_in(2, digits({"data_loader.args.batch_size": 1}), code=2)
    assert "batch_size 1 is too small for 2 processes" in capfd.readouterr().err
    idle = plain({"arch": "networks.Idle", "trainer.epochs": 1})
    train_in(2, idle, code=1)
    error = capfd.readouterr().err
    assert "set engine.find_unused_parameters" in error
    assert "Traceback" not in error
    train_in(2, idle | {"engine": {"find_unused_parameters": True}})


def test_death_of_one_process_ends_the_others(plain, own_code, tmp_path, capfd):
    own_code(
        "dying",
        "import os\nfrom trainer import Trainer\nfrom utils.engine import distributed\n"
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
        child = os.fork()  # so that this process is left to report
        if child == 0:
            script.main(["-c", str(file)])
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert run_processes(2, action) == [9, 1]
    error = capfd.readouterr().err
    assert "another process of the run has ended, so this one ends too" in error
    assert "Traceback" not in error


NCCL = (
    "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:317, {}, NCCL version 2.27.5\n"
    "{}: What it means.\nLast error:\n{}"
)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer "
         "[127.0.0.1]:3000", "another process of the run has ended"),
        (NCCL.format("remote process exited or there was a network error", "ncclRemoteError",
                     "socketProgress: Connection closed"), "another process of the run has ended"),
        (NCCL.format("unhandled cuda error", "ncclUnhandledCudaError",
                     "Cuda failure 999 'unknown error'"),
         "the processes cannot exchange numbers: Cuda failure 999 'unknown error'"),
        ("[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv",
         "the processes cannot exchange numbers: [../gloo/transport/tcp/unbound_buffer.cc:81] "
         "Timed out"),
        ("Expected to have finished reduction; you can pass `find_unused_parameters=True`",
         "set engine.find_unused_parameters"),
        (NCCL.format("unhandled cuda error", "ncclUnhandledCudaError",
                     "Failed to CUDA calloc async 608 bytes: out of memory"), None),
        ("size mismatch", None),
    ],
)  # fmt: skip
def test_why_processes_cannot_exchange_numbers(error, message):
    """Texts of gloo and of NCCL."""
    found = distributed.explain_exchange(RuntimeError(error))
    assert found is None if message is None else message in found


@pytest.mark.parametrize(
    ("has_gpu", "has_nccl", "on_cpu", "backend"),
    [
        (True, True, False, "cpu:gloo,cuda:nccl"),
        (True, False, False, "gloo"),  # Windows
        (True, True, True, "gloo"),
        (False, True, False, "gloo"),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_group_is_left_in_any_case(monkeypatch, has_gpu, has_nccl, on_cpu, backend, fails):
    calls = []
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(distributed.dist, "is_nccl_available", lambda: has_nccl)
    for name in ("TCPStore", "PrefixStore", "barrier"):
        monkeypatch.setattr(distributed.dist, name, lambda *a, **k: None)
    monkeypatch.setattr(
        distributed.dist, "init_process_group", lambda chosen, **k: calls.append(chosen)
    )
    monkeypatch.setattr(
        distributed.dist, "destroy_process_group", lambda: calls.append("destroyed")
    )
    monkeypatch.setattr(
        distributed.atexit, "register", lambda end, code: calls.append(f"ends with {code}")
    )
    outcome = pytest.raises(UserError) if fails else contextlib.nullcontext()
    with outcome, distributed.process_group(on_cpu):
        if fails:
            raise UserError("a mistake")
    waits = fails and "nccl" in backend  # for processes that do not know of the error
    assert calls == [backend, "ends with 2" if waits else "destroyed"]


def test_check_in_two_processes(digits, train_in):
    train_in(2, digits(), "--check")


def test_batch_size_of_each_process(digits):
    sgd = {"lr": 0.1}, [{"match": "^fc2", "lr": 0.5}]
    changes = {
        "engine": {"batch_size": "process", "scale_lr": True, "precision": "fp32"},
        "optimizer": {"type": "SGD", "args": sgd[0], "param_groups": sgd[1]},
        "valid_data_loader": {"type": "DigitsDataLoader", "args": {}},
    }
    config = multiply_batches(ConfigParser(digits(changes)), 4)
    assert config["data_loader"]["args"]["batch_size"] == 400
    assert config["valid_data_loader"]["args"]["batch_size"] == 256
    assert config["optimizer"]["args"]["lr"] == pytest.approx(0.4)
    assert config["optimizer"]["param_groups"] == [{"match": "^fc2", "lr": 2.0}]
    assert config["engine"] == {"precision": "fp32"}  # so a resumed run keeps its batches
    assert multiply_batches(config, 4)["data_loader"]["args"]["batch_size"] == 400
    unscaled = multiply_batches(ConfigParser(digits({"engine": {"batch_size": "process"}})), 4)
    assert unscaled["data_loader"]["args"]["batch_size"] == 400
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
def test_number_of_processes_to_start(monkeypatch, device, n_gpu, procs, gpus, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert launch.processes_to_start(device, procs, n_gpu) == count
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launch.processes_to_start(device, procs, n_gpu) == 1


@pytest.mark.parametrize(
    ("device", "procs"), [("0,1", 3), ("0,0", None), ("cpu", 0), ("0;1", None)]
)
def test_wrong_devices_and_processes(monkeypatch, device, procs):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError):
        launch.processes_to_start(device, procs, 1)


def test_slurm_variables(monkeypatch):
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
    assert launch.dist_info() == (0, 0, 1)  # a batch script, not started by srun
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    assert launch.dist_info() == (5, 1, 8)
    address, port = launch.meeting_point()
    assert address == "gpu07"
    assert 15000 <= port < 30000
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launch.dist_info() == (0, 0, 2)  # torchrun, within SLURM


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


def launched(tmp_path, config, *arguments, wait=True):
    """train.py as a person starts it."""
    file = tmp_path / "launched.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "-c",
        str(file),
        "-d",
        "cpu",
        "--procs",
        "2",
        *arguments,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, **streams)
    if wait:
        out, _ = process.communicate(timeout=300)
        return process.returncode, out
    return process


def children(process):
    pids = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
    ).stdout
    return [int(pid) for pid in pids.split()]


def test_command_starts_processes(plain, train, own_code, tmp_path):
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


@pytest.mark.slow
def test_run_survives_killed_processes(plain, train, tmp_path):
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
@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGXCPU, 152)],
)
def test_signal_to_the_command(plain, tmp_path, signum, code):
    process = launched(tmp_path, plain({"trainer.epochs": 5000}), wait=False)
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("epoch    2/"):
            process.send_signal(signal.SIGUSR1)  # goes on
        if line.startswith("epoch    3/"):
            process.send_signal(signum)
            time.sleep(0.05)
            process.send_signal(signum)  # as an impatient user or a wrapper would
    assert process.wait(100) == code, "".join(seen)
    assert "everything is saved. Continue with:" in "".join(seen)
    assert "Traceback" not in "".join(seen)
    assert last_checkpoint(runs(tmp_path)[0])["trainer"]["processes"] == 2
