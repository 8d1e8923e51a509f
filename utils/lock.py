"""One process at a time trains in a run's folder.

The lock is the system's: it ends with the process, however that ends, and holds on network file
systems too. Its file says who holds it.
"""

import contextlib
import errno
import json
import logging
import os
import socket
import time
from pathlib import Path

from utils.errors import UserError
from utils.run_folder import read_json

NAME = ".lock"
UNSUPPORTED = errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP
FAR = 1 << 30  # Windows lets nobody read the byte that is locked

_held: dict[Path, int] = {}  # the open files


def acquire(run: Path) -> None:
    """Lock the run's folder until `release`. Raises UserError if another process has locked it."""
    path = run.resolve() / NAME
    if path in _held:
        return
    file = _open_locked(path)
    if file is None:
        raise UserError(f"{run} is being trained {_holder(path)}; wait for its end, or stop it")
    about = {"host": socket.gethostname(), "process": os.getpid(), "since": time.ctime()}
    os.ftruncate(file, 0)
    os.write(file, json.dumps(about).encode())
    _held[path] = file


def release() -> None:
    """Unlock all folders that this process has locked."""
    while _held:
        path, file = _held.popitem()
        with contextlib.suppress(OSError):  # the folder is gone, or Windows
            path.unlink()
        os.close(file)


def is_free(run: Path) -> bool:
    """Whether no other process has locked the run's folder."""
    path = run.resolve() / NAME
    if path in _held or not path.exists():
        return True
    file = _open_locked(path)
    if file is not None:
        os.close(file)
    return file is not None


def _open_locked(path: Path) -> int | None:
    """The file, open and locked; None if another process has it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(file)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                os.close(file)
                return None
            logging.getLogger("lock").warning(
                f"the file system of {path.parent} has no locks: take care that only one process "
                "trains there"
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        os.close(file)  # its last holder has deleted it meanwhile


def _lock(file: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        os.lseek(file, FAR, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        os.lseek(file, 0, os.SEEK_SET)
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by workers, unlike flock


def _holder(path: Path) -> str:
    about = read_json(path)
    if not {"process", "host", "since"} <= about.keys():
        return "by another process"
    return f"by process {about['process']} on {about['host']} since {about['since']}"
