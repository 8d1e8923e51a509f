"""Files that are written whole, names that every system takes, lines that can be pasted."""

import errno
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import torch

from utils import checkpoint
from utils.errors import RunError
from utils.files import (
    atomic_write,
    remove_leftovers,
    safe_name,
    shell_command,
    temporary_suffix,
    write_text,
)


@pytest.fixture
def small_files():
    """Files may grow to 64 KB only; a longer one fails like one on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_file_that_does_not_fit_is_named_and_the_old_one_stays(tmp_path, small_files):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(OSError, match="File too large") as raised:
        write_text(path, "x" * 2**20)
    assert raised.value.filename == str(path)
    assert raised.value.errno == errno.EFBIG
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_checkpoint_that_does_not_fit_is_named(tmp_path, small_files):
    state = {"state_dict": {"weight": torch.zeros(10**6)}, "config": {}, "origin": {"digest": "1"}}
    with pytest.raises((OSError, RunError)) as raised:
        checkpoint.save(state, tmp_path / "model_best.pth")
    assert "model_best.pth" in str(raised.value)
    assert not os.listdir(tmp_path)


def test_file_in_a_folder_that_is_not_there_is_named_as_it_will_be_called(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, atomic_write(tmp_path / "no" / "a"):
        pass
    assert raised.value.filename == str(tmp_path / "no" / "a")


def test_leftovers_of_ended_processes_of_this_machine_are_removed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = socket.gethostname()
    gone = [f".a.txt.{host}-{ended.pid}.tmp", f".b.pth.{ended.pid}.tmp"]
    kept = [f".a.txt.{host}-{os.getppid()}.tmp", f".a.txt.elsewhere-{ended.pid}.tmp"]
    kept += [f".a.txt{temporary_suffix()}", f"a.{ended.pid}.tmp", ".own.tmp"]
    for name in gone + kept:
        (tmp_path / name).touch()
    folder = tmp_path / f".export-x.{host}-{ended.pid}.tmp"
    shutil.copytree(tmp_path, folder)
    write_text(tmp_path / "other.txt", "x")
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "other.txt"])
    remove_leftovers(tmp_path / "missing")


@pytest.mark.parametrize("name", ["con", "NUL", "aux.txt", "Com1", "lpt9.tar.gz", "COM²", "conin$"])
def test_names_of_windows_devices_are_changed(name):
    assert safe_name(name) == f"_{name}"


@pytest.mark.parametrize("name", ["console", "com", "com10", "nul-1", "auxiliary.txt", "a.con"])
def test_other_names_stay(name):
    assert safe_name(name) == name


@pytest.mark.parametrize("name", ["a b", "$HOME", "it's", "`id`", "a;b&c|d", "*?", '"', "型"])
def test_pasted_commands_mean_what_they_say(name):
    line = shell_command("printf", "%s", name)
    result = subprocess.run(["sh", "-c", line], capture_output=True, check=True)
    assert result.stdout.decode() == name
