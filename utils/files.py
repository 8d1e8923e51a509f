"""Files on disk: written completely or not at all, under names that every system accepts."""

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent  # of the project
# devices to Windows, whatever suffix follows
DEVICES = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³]|con(in|out)\$) *(\..*)?", re.I | re.S)


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb", **options: str) -> Iterator[IO]:
    """Open a temporary file that replaces `path` when the block ends without an error.

    So `path` holds the old file or the complete new one, even after a power failure.
    `options` are those of open(): encoding, newline. An OSError names `path`.
    """
    remove_leftovers(path.parent)
    # two runs may write the same file of a cache
    temporary = path.with_name(f".{path.name}{temporary_suffix()}")
    try:
        with named(path, temporary):
            with open(temporary, mode, **options) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def named(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """An OSError inside names `path`: a full disk's names nothing, or the temporary file."""
    try:
        yield
    except OSError as error:
        if error.filename is None or error.filename == str(temporary):
            error.filename = str(path)
        raise


def temporary_suffix() -> str:
    """What the name of a temporary file or folder ends with, that of a hidden file: it says whose
    it is. `remove_leftovers` finds it if this process is killed.
    """
    return f".{socket.gethostname()}-{os.getpid()}.tmp"


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders whose process on this machine no longer runs."""
    own = re.compile(rf"\..*\.(?:{re.escape(socket.gethostname())}-)?(\d+)\.tmp", re.S)
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if (match := own.fullmatch(path.name)) and not _is_running(int(match[1])):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_running(process: int) -> bool:
    if os.name == "nt":  # where os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def write_text(path: Path, text: str, encoding: str = "utf-8") -> None:
    """Write `text` atomically; line ends stay as they are."""
    with atomic_write(path, "w", encoding=encoding, newline="") as file:
        file.write(text)


def write_json(path: Path, content: object, indent: int = 2) -> None:
    """Write `content` as JSON atomically, with other than English letters as they are."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def printable(path: str) -> str:
    """`path` as text that every file, screen and format accepts; to open the file, use `path`.

    Python reads bytes that are not UTF-8 as lone surrogates, which cannot be written. They are read
    as Shift-JIS here (old Japanese Windows), or else escaped, like control characters.
    """
    if path.isprintable():
        return path
    return os.sep.join(map(_printable_name, path.split(os.sep)))  # each may have its own encoding


def _printable_name(name: str) -> str:
    try:
        content = os.fsencode(name)
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        content = name.encode(errors="backslashreplace")
    for encoding in ("utf-8", "cp932"):
        with contextlib.suppress(UnicodeDecodeError):
            name = content.decode(encoding)
            break
    else:
        name = content.decode(errors="backslashreplace")
    # control characters, and what cp932 makes of bytes without a meaning
    return re.sub("[\x00-\x1f\x7f-\x9f\uf8f0-\uf8f3]", lambda match: ascii(match[0])[1:-1], name)


def safe_name(name: str) -> str:
    """`name` as a file name that Windows, macOS and Linux accept; "" if nothing is left."""
    # a name may have 255 bytes; a Japanese character takes three
    cleaned = re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", name).encode(errors="ignore")[:200]
    cleaned = cleaned.decode(errors="ignore").strip(" .")
    return f"_{cleaned}" if DEVICES.fullmatch(cleaned) else cleaned


def shell_command(*words: object) -> str:
    """The words as a line that can be pasted into a shell: what would mean more is quoted."""
    if os.name == "nt":
        from subprocess import list2cmdline

        return list2cmdline(map(str, words))
    return shlex.join(map(str, words))


def numbered(path: Path) -> Iterator[Path]:
    """`path`, then the same with -2, -3, ... before its suffix, endlessly: to find a free name."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")
