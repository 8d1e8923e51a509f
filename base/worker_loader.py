"""Batches from other processes, and sentences for what may go wrong there."""

import contextlib
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterator
from multiprocessing import connection
from multiprocessing.queues import Queue
from typing import Any

from torch.utils.data import DataLoader

from base.samples import Batch, Samples, finished
from utils.errors import RunError, first_line

CAUSES = {  # of the end of a worker, by the number of its signal
    9: "the system ends processes when the memory is full",
    7: "the shared memory (/dev/shm) is probably full",
    11: "a library crashed",
}


class WorkerLoader(DataLoader):
    """Torch's DataLoader, for `Samples`: a worker's error is a sentence.

    Raises UserError for a sample that cannot be loaded, RunError for a worker that has died.
    """

    def __init__(self, samples: Samples, *args: Any, num_workers: int = 0, **kwargs: Any):
        self._running: Iterator[Batch] | None = None  # the pass that began last
        if num_workers:
            samples.loading = multiprocessing.RawArray("q", [-1] * num_workers)
        super().__init__(
            samples,
            *args,
            num_workers=num_workers,
            collate_fn=finished,
            worker_init_fn=_prepare_worker,
            persistent_workers=num_workers > 0,
            **kwargs,
        )

    def set_workers(self, count: int, persistent: bool = True) -> None:
        """Prepare batches in so many processes from the next pass on.

        Without `persistent` they end with the pass.
        """
        self.end_workers()
        self.dataset.loading = multiprocessing.RawArray("q", [-1] * count) if count else None
        # torch's own attributes, which it lets nobody set one by one
        options = {
            "persistent_workers": count > 0 and persistent,
            "prefetch_factor": 2 if count else None,
        }
        vars(self).update(num_workers=count, **options)

    def __iter__(self) -> Iterator[Batch]:
        if self.num_workers and self._iterator is None:
            self._check_open_files()
        try:
            with _kept_handler():
                self._running = super().__iter__()
            yield from self._running
        except Exception as error:
            try:
                self._explain(error)
                raise
            finally:
                self.end_workers()
        finally:
            if not self.persistent_workers:  # of a pass that is given up, they end now
                self._running = None

    def end_workers(self) -> None:
        """End the workers; the next pass starts others.

        An error's traceback may hold their iterator for long. Left to the garbage collector, which
        closes their queues first, each worker costs ten seconds.
        """
        if hasattr(self._running, "_shutdown_workers"):
            self._running._shutdown_workers()
        self._running = self._iterator = None

    def _check_open_files(self) -> None:
        """Raises RunError if the workers would need more than the system's limit."""
        with contextlib.ExitStack() as stack:
            try:
                for _ in range(8 + 6 * self.num_workers):
                    stack.enter_context(open(os.devnull))
            except OSError as error:
                raise RunError(
                    f"data_loader: too many open files for {self.num_workers} workers; raise the "
                    "limit (ulimit -n), or use fewer: "
                    f"-s data_loader.args.num_workers={self.num_workers // 2}"
                ) from error

    def _explain(self, error: Exception) -> None:
        """Raise the error as a sentence if it comes from a worker."""
        name, text = type(error).__name__, str(error).strip()
        if text.startswith("Caught "):  # in a worker, whose traceback follows
            _, found, sentence = text.rpartition(f"{name}: ")
            raise type(error)(sentence if found else name) from error
        if isinstance(error, RuntimeError | OSError | EOFError):
            self._explain_death(error)

    def _explain_death(self, error: Exception) -> None:
        """Raises RunError if a worker has died."""
        workers = getattr(self._running, "_workers", [])
        ended = connection.wait([worker.sentinel for worker in workers], timeout=1)
        for number, worker in enumerate(workers):
            worker.join(1 if worker.sentinel in ended else 0)
            if code := worker.exitcode:
                reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                cause, sample = CAUSES.get(-code, "see above"), self.dataset.loading[number]
                place = f" while it loaded {self.dataset.name(sample)}" if sample >= 0 else ""
                raise RunError(
                    f"data_loader: worker {number + 1} of {self.num_workers} died{place} "
                    f"({reason}: {cause}); for fewer workers "
                    f"-s data_loader.args.num_workers={self.num_workers // 2}"
                ) from error
        if re.search("DataLoader worker|open files|Pin memory thread", str(error)):
            raise RunError(f"data_loader: {first_line(error)}") from error


@contextlib.contextmanager
def _kept_handler() -> Iterator[None]:
    """Torch's handler raises a worker's death wherever this process is, in the middle of an
    optimizer step too; without it, it is raised where its batch is missing.
    """
    number = getattr(signal, "SIGCHLD", None)  # Windows has none
    before = number and signal.getsignal(number)
    yield
    if before is not None:
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(number, before)


def _prepare_worker(worker: int) -> None:
    # A batch that cannot be sent (too many open files, say) would be waited for without end.
    Queue._on_queue_feeder_error = staticmethod(_end_worker)
    # Ctrl-C, and a batch system's SIGTERM, reach the whole process group. A worker that dies of
    # it would cost the epoch that the trainer wants to save. In its own group it lives on.
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_worker(error: Exception, batch: object) -> None:
    print(f"data_loader: a worker could not send its batch: {error}", file=sys.stderr, flush=True)
    os._exit(1)
