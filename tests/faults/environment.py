"""What goes wrong around a run: no room on the disk, no memory, folders that vanish or may not be
written, two trainers for one run, an output that nobody reads. Each ends with a sentence, and the
run goes on afterwards as if nothing had happened.
"""

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from tests.faults.gallery import gallery
from tests.faults.lab import (
    DIGITS,
    Fault,
    Lab,
    Reference,
    assert_equal_runs,
    assert_no_leftovers,
    check,
    find_run,
    merged,
    write_config,
)
from tests.faults.server import Job, open_streams, run

START = ["train.py", "-c", "config.json"]
WORKERS = merged(DIGITS, {"data_loader": {"args": {"num_workers": 2}}})
RDONLY, REMOUNT, BIND = 1, 32, 4096  # flags of mount(2)


def serve_memory_by_workers() -> None:
    """The digits are in memory, where no workers are needed; the images of others are not."""
    from data_loader.datasets import InMemoryDataLoader

    InMemoryDataLoader.in_memory = False


def trial(lab: Lab, random: Random) -> Counter:
    name = random.choice(list(TRIALS))
    try:
        done = TRIALS[name](lab, random)
    except Fault as fault:
        raise Fault(f"{name}: {fault}") from None
    return Counter({f"{name}{'' if done is None else done}": 1})


def _finish(reference: Reference, work: Path, name: str = "Digits") -> None:
    """Resume, or start if nothing was saved; it must end as the unbroken run has."""
    path = find_run(work, name)
    ended = run(work, START if path is None else ["train.py", "-r", str(path)])
    check(ended, allowed=(0,))
    path = find_run(work, name)
    assert_equal_runs(reference, work, path)
    assert_no_leftovers(work / path)


def full_disk(lab: Lab, random: Random) -> str | None:
    reference, work = lab.trained(), lab.fresh()
    write_config(work, DIGITS)
    size = sum(file.stat().st_size for file in reference.folder.rglob("saved/**/*.*"))
    limit = random.randint(1, int(1.2 * size))
    with _small_disk(work / "saved", limit) as grow:
        # where nothing can be mounted, no file may be larger; such a disk has room at once
        each = (limit // 4,) * 2
        limits = [] if grow else [lambda: resource.setrlimit(resource.RLIMIT_FSIZE, each)]
        check(run(work, START, limits))
        if grow:
            grow()
        _finish(reference, work)
    return None if grow else " (limited files)"


@contextlib.contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[Callable[[], None] | None]:
    """A file system of `size` bytes in `folder`; gives a function that makes it large."""
    folder.mkdir(exist_ok=True)
    pages = max(1, -(-size // 4096)) * 4096
    if not _mount("tmpfs", folder, "tmpfs", 0, f"size={pages}"):
        yield None
        return
    try:
        yield lambda: _mount("tmpfs", folder, "tmpfs", REMOUNT, "size=100m")
    finally:
        _unmount(folder)


def _mount(source: str | Path, folder: Path, kind: str, flags: int, options: str) -> bool:
    """Whether it could be mounted; only root may."""
    if sys.platform != "linux" or os.geteuid():
        return False
    words = [str(word).encode() for word in (source, folder, kind)]
    return ctypes.CDLL(None).mount(*words, flags, options.encode()) == 0


def _unmount(folder: Path) -> None:
    ctypes.CDLL(None).umount2(str(folder).encode(), 2)


def read_only(lab: Lab, random: Random) -> str | None:
    """Folders that may not be written, from the start or while it trains."""
    work = lab.copy(gallery(lab))
    shutil.rmtree(work / "parts.cache")
    names = ["saved", "saved/models", "saved/log", "saved/models/Digits/run",
             "saved/log/Digits/run", "data", ".", "saved/models/Digits/run/test"]  # fmt: skip
    folder, saved = work / random.choice(names), "saved/models/Digits/run"
    command = random.choice([
        ["train.py", "-c", "digits.json"], ["train.py", "-r", saved, "--epochs", "3"],
        ["test.py", "-r", saved], ["export.py", "-r", saved], ["train.py", "-c", "parts.json"],
        ["test.py", "-r", saved, "--images", "parts/test"],
        ["prune.py", "-c", "prune.json", "-r", saved, "--check"],
    ])  # fmt: skip
    if not _mount(folder, folder, "", BIND, ""):
        return " (left out: nothing can be mounted)"
    try:
        _mount(folder, folder, "", BIND | REMOUNT | RDONLY, "")
        ended = run(work, command)
    finally:
        _unmount(folder)
    try:
        check(ended)
    except Fault as fault:
        raise Fault(f"{folder.relative_to(work)}, {' '.join(command)}: {fault}") from None
    return None


def lost_folder(lab: Lab, random: Random) -> None:
    """Something is deleted or renamed while it trains."""
    reference, work = lab.trained(), lab.fresh()
    write_config(work, DIGITS)
    job = Job(work, START)
    job.runs_for(random.uniform(0, reference.seconds))
    what = random.choice([
        "saved", "saved/models", "saved/log", "saved/models/Digits/*", "saved/log/Digits/*",
        "saved/models/Digits/*/*", "config.json",
    ])  # fmt: skip
    for path in work.glob(what):
        if random.random() < 0.5:
            path.rename(work / f"moved-{path.name}")
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    try:
        check(job.end())
    except Fault as fault:
        raise Fault(f"{what}: {fault}") from None


def lost_images(lab: Lab, random: Random) -> None:
    """Images vanish while they are read."""
    work = lab.copy(gallery(lab))
    cache, workers = random.choice(["null", "ram", "disk"]), random.choice([0, 2])
    settings = [f"data_loader.args.cache={cache}", f"data_loader.args.num_workers={workers}"]
    job = Job(work, ["train.py", "-c", "parts.json", "--epochs", "9", "-s", *settings])
    job.runs_for(random.uniform(0, 2))
    for path in sorted(work.glob("parts/*/*/*"))[:: random.choice([1, 2, 10])]:
        path.unlink()
    if random.random() < 0.3:
        shutil.rmtree(work / "parts.cache", ignore_errors=True)
    check(job.end())


def two_trainers(lab: Lab, random: Random) -> None:
    """Two commands resume one run: it ends as if one had."""
    reference, work = lab.trained(), lab.fresh()
    write_config(work, DIGITS)
    first = Job(work, START)
    first.runs_for(random.uniform(0.3, 1) * reference.seconds)
    if random.random() < 0.5:
        first.send(signal.SIGKILL)
        first.end()
    path = find_run(work, "Digits")
    words = [] if path is None or random.random() < 0.3 else [str(path)]
    jobs = [first] if first.status is None else []
    for _ in range(2):
        jobs.append(Job(work, ["train.py", "-r", *words]))
        time.sleep(random.choice([0, 0.01, 0.2]))
    for job in jobs:
        check(job.end())
    _finish(reference, work)


def two_starts(lab: Lab, random: Random) -> None:
    """Two runs that start in one second have folders of their own."""
    reference, work = lab.trained(), lab.fresh()
    write_config(work, DIGITS)
    jobs = [Job(work, START) for _ in range(2)]
    for job in jobs:
        check(job.end(), allowed=(0,))
    paths = [path for path in (work / "saved/models/Digits").iterdir() if path.is_dir()]
    if len(paths) != 2:
        raise Fault(f"{len(paths)} folders for two runs")
    for path in paths:
        assert_equal_runs(reference, work, path.relative_to(work))


def little_memory(lab: Lab, random: Random) -> None:
    reference, work = lab.trained(), lab.fresh()
    write_config(work, DIGITS)
    more = random.choice([0, 2**20, 2**24, 2**26, 2**28]) + random.randrange(2**24)
    size = random.choice([[], ["--bs", "1000", "-s", "arch.args.image_size=28"]])

    def limit() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        allowed = pages * os.sysconf("SC_PAGE_SIZE") + more
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))

    try:
        check(run(work, [*START, *size], [limit]))
    except Fault as fault:
        raise Fault(f"{more / 2**20:.0f} MB more than at the start: {fault}") from None
    if not size:
        _finish(reference, work)


def dead_worker(lab: Lab, random: Random) -> None:
    """A worker of the data loader is killed, as the system does when memory is short."""
    reference, work = lab.reference("workers", WORKERS, START), lab.fresh()
    write_config(work, WORKERS)
    job = Job(work, START, [serve_memory_by_workers])
    until = time.monotonic() + random.uniform(0, reference.seconds)
    while job.runs_for(0.01):
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        if time.monotonic() >= until and len(children) > 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(random.choice(children)), signal.SIGKILL)
            break
    check(job.end())  # if it had sent its last batch, nothing is missing
    _finish(reference, work)


def few_files(lab: Lab, random: Random) -> None:
    """Few open files are allowed."""
    config = random.choice([DIGITS, WORKERS])
    reference, work = lab.trained(), lab.fresh()
    write_config(work, config)
    count = random.randint(8, 40)
    limit = [serve_memory_by_workers,
             lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))]  # fmt: skip
    try:
        check(run(work, START, limit))
    except Fault as fault:
        raise Fault(f"{count} files: {fault}") from None
    _finish(reference, work)


def no_reader(lab: Lab, random: Random) -> None:
    """Nobody reads what is printed: it is closed, full, or a pipe that has ended."""
    work = lab.copy(gallery(lab))
    kind, streams = random.choice(["closed", "full", "pipe"]), random.choice([(1,), (2,), (1, 2)])
    saved = "saved/models/Digits/run"
    command = random.choice([
        ["train.py", "-c", "digits.json"], ["test.py", "-r", saved], ["train.py", "--help"],
        ["train.py", "-r", saved, "--epochs", "3"], ["train.py", "-c", "gone.json"],
        ["export.py", "-r", saved, "--check"], ["new_project.py", "new"],
    ])  # fmt: skip
    label = f"{kind}, {' '.join(map(str, streams))}, {' '.join(command)}"
    ended = run(work, command, [lambda: _cut_off(kind, streams)])
    if "Logging error" in ended.output:
        raise Fault(f"{label}: prints errors of logging")
    missing = command[-1] == "gone.json"
    try:
        check(ended, allowed=(2,) if missing else (0, 1, 2, 141))
    except Fault as fault:
        if "without a word" not in str(fault):
            raise Fault(f"{label}: {fault}") from None
    trains = command[:2] == ["train.py", "-c"] and not missing
    if trains and len(list(work.glob("saved/models/Digits/*/*-epoch2.pth"))) < 2:
        raise Fault(f"{label}: did not train; it ends with {ended.code}")


def _cut_off(kind: str, streams: tuple[int, ...]) -> None:
    for number in streams:
        if kind == "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), number)
        elif kind == "pipe":
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, number)
    open_streams()
    if kind == "closed":
        for number in streams:
            os.close(number)
            name = "stdout" if number == 1 else "stderr"
            setattr(sys, name, None)  # as Python starts then
            setattr(sys, f"__{name}__", None)


TRIALS = {
    "full disk": full_disk,
    "read-only folder": read_only,
    "lost folder": lost_folder,
    "lost images": lost_images,
    "two trainers": two_trainers,
    "two starts": two_starts,
    "little memory": little_memory,
    "dead worker": dead_worker,
    "few open files": few_files,
    "nobody reads": no_reader,
}
