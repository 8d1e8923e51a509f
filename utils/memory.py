import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of malloc.h


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for what is wanted next, for as long as the process lives.

    Batches, and on the CPU a network's steps, free and want the same hundreds of megabytes again and again. glibc gives
    them back to the system, from where they come with a page fault for each 4 KiB: a fifth of the time of a step on the
    CPU, and more. Where the C library is another one nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, -1)  # of all that is free nothing is given back
        mallopt(MMAP_MAX, 0)  # and no large piece is taken outside of what is kept
