"""A short run of each kind of trial, and that trials notice what they are for."""

import signal
from random import Random

import pytest

from tests.faults import lab, schedule, server

# Trials that take little time: one kill, no large network.
NUMBERS = dict.fromkeys(schedule.KINDS, 0) | {
    "prune": 10,
    "export": 7,
    "checkpoints": 1,
    "systems": 1,
}


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory):
    server.preload()
    return lab.Lab(tmp_path_factory.mktemp("faults"))


LONG = ("configs", "prune", "export")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.slow] if kind in LONG else [])
        for kind in schedule.KINDS
    ],
)
def test_short_run(laboratory, kind):
    result = schedule.attempt(laboratory, 1, kind, NUMBERS[kind])
    assert result.fault is None
    assert sum(result.counts.values()) > 0


def test_what_a_trial_does_follows_from_its_number(monkeypatch):
    drawn = []
    monkeypatch.setitem(
        schedule.KINDS,
        "drawing",
        schedule.Kind(lambda _, random: drawn.append(random.random()) or {}, "", 1),
    )
    for number in (3, 4, 3):
        schedule.attempt(None, 1, "drawing", number)
    assert drawn[0] == drawn[2] != drawn[1]
    assert drawn[0] == Random("1 drawing 3").random()


FAULTY = """
import os, signal, subprocess, sys, time
def main(argv):
    if argv == ["raises"]:
        raise KeyError("x")
    if argv == ["sleeps"]:
        time.sleep(100)
    if argv == ["starts"]:
        subprocess.run(["true"])
    if argv == ["dies"]:
        os.kill(os.getpid(), signal.SIGUSR2)
    if argv == ["writes"]:
        for name in "abc":
            open(name, "w").close()
    return len(argv)
"""


@pytest.fixture
def faulty(own_code, tmp_path):
    own_code("faulty", FAULTY)
    (tmp_path / "work").mkdir()

    def run(*words, prepare=(), limit=10):
        return server.run(tmp_path / "work", ["faulty.py", *words], prepare, limit)

    return run


def test_bad_ends_are_noticed(faulty):
    assert faulty().complaint() is None
    assert "a traceback: KeyError: 'x'" in faulty("raises").complaint()
    assert "without a word" in faulty("silent").complaint()
    assert f"ends with {128 + signal.SIGUSR2}" in faulty("dies").complaint()
    assert "hangs" in faulty("sleeps", limit=0.3).complaint()


def test_kill_comes_before_the_chosen_change_of_a_file(faulty, tmp_path):
    prepare = [lambda: lab.watch_files(tmp_path / "events", kill_at=3)]
    assert faulty("writes", prepare=prepare).code == 128 + signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["a", "b"]
    assert (tmp_path / "events").read_bytes() == b"..."


def test_started_programs_are_noticed(faulty, tmp_path):
    from tests.faults.hostile import _watch

    faulty("starts", prepare=[lambda: _watch(tmp_path / "started")])
    assert (tmp_path / "started").read_text().startswith("subprocess.Popen")


def test_work_lost_is_counted_from_one_process_to_the_next(tmp_path):
    (tmp_path / "steps").write_text("7 0\n7 1\n7 2\n7 3\n8 2\n8 3\n8 4\n9 5\n")
    assert lab.work_lost(tmp_path / "steps") == 2  # batches 2 and 3


def test_differences_of_runs_are_noticed(laboratory, tmp_path):
    trained = laboratory.trained()
    work = laboratory.copy(trained.folder)
    lab.assert_equal_runs(trained, work, trained.path)
    other = lab.merged(lab.DIGITS, {"seed": 6})
    lab.write_config(laboratory.fresh("other"), other)
    folder = laboratory.folder / "other" / "work"
    lab.check(server.run(folder, ["train.py", "-c", "config.json"]), allowed=(0,))
    with pytest.raises(lab.Fault, match="differs in"):
        lab.assert_equal_runs(trained, folder, lab.find_run(folder, "Digits"))
