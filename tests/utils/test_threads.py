"""How many cores and threads a run uses: affinity, a container's quota, SLURM, --threads."""

import os
import subprocess
import sys

import pytest
import torch

import train as script
from tests.conftest import ROOT, last_checkpoint
from utils.engine import launch
from utils.errors import UserError

MANY = 64


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that makes the files of a machine with 64 cores, and returns their root."""
    monkeypatch.setattr(launch, "_visible_cores", lambda: MANY)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)

    def make(groups, **files):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
        for name, text in files.items():
            file = tmp_path / "sys/fs/cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),  # docker --cpus=2
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, MANY),
        ("0::/\n", {}, MANY),
        # the least of a group and those above it
        ("0::/a/b\n", {"a/b/cpu.max": "800000 100000", "a/cpu.max": "300000 100000"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "cpu.max": "500000 100000"}, 5),
        # the path is the host's, the files the container's
        ("0::/system.slice/docker-1.scope\n", {"cpu.max": "400000 100000"}, 4),
        (
            "5:memory:/\n4:cpu,cpuacct:/job\n",
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "600000",
             "cpu,cpuacct/job/cpu.cfs_period_us": "100000"},
            6,
        ),
        (
            "4:cpu,cpuacct:/\n0::/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            MANY,
        ),
        ("0::/\n", {"cpu.max": "damaged"}, MANY),
    ],
)  # fmt: skip
def test_quota_of_a_container_counts(machine, groups, files, expected):
    assert launch.cores(machine(groups, **files)) == expected


def test_share_of_a_scheduler_counts(machine, monkeypatch):
    root = machine("0::/\n", **{"cpu.max": "800000 100000"})
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert launch.cores(root) == 3


def threads_of(words, affinity=None):
    """The number of threads that torch computes with in a new process that first runs `words`."""
    code = f"from utils.engine import launch\n{words}\nimport torch\nprint(torch.get_num_threads())"
    own = {k: v for k, v in os.environ.items() if not k.startswith(("OMP", "MKL", "SLURM"))}
    limit = None if affinity is None else lambda: os.sched_setaffinity(0, affinity)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=own, preexec_fn=limit,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_torch_uses_the_cores_that_there_are():
    # torch takes no more than the machine has, so that larger numbers cannot be seen here
    quota = "launch._visible_cores = lambda: 64\nlaunch._quotas = lambda root: [1.0]\n"
    assert threads_of(f"{quota}launch.configure_threads()") == 1
    one = {min(os.sched_getaffinity(0))}
    assert threads_of("launch.configure_threads()", affinity=one) == 1


def test_number_of_threads_is_that_of_the_quota(monkeypatch):
    monkeypatch.setattr(launch, "_visible_cores", lambda: MANY)
    monkeypatch.setattr(launch, "_quotas", lambda root: [5.5])
    for processes, expected in ((1, "6"), (2, "3"), (20, "1")):
        monkeypatch.setenv("OMP_NUM_THREADS", "")
        del os.environ["OMP_NUM_THREADS"]
        launch.configure_threads(processes=processes)
        assert os.environ["OMP_NUM_THREADS"] == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "4")  # the user's own number stays
    launch.configure_threads(processes=2)
    assert os.environ["OMP_NUM_THREADS"] == "4"


def test_threads_of_the_command_line(digits, train, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # to be restored
    before = torch.get_num_threads()
    try:
        run = train(digits({"trainer.epochs": 1}), "--threads", 2)
        assert last_checkpoint(run)["sessions"][-1]["threads"] == 2
        assert os.environ["OMP_NUM_THREADS"] == "2"  # for processes that this one starts
    finally:
        torch.set_num_threads(before)
    capsys.readouterr()
    assert script.main(["-r", str(run), "--threads", "0"]) == 2
    assert "--threads 0: should be at least 1" in capsys.readouterr().err
    with pytest.raises(UserError, match="--threads -1"):
        launch.configure_threads(-1)
