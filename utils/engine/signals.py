import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from utils.engine.distributed import AsyncMax
from utils.errors import Interrupted

SECONDS_IGNORED = 2.0  # in which wrappers and impatient people repeat a signal
STOPPING = "SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGXCPU"
SAVING = "SIGUSR1"


def stopping_signals() -> list[signal.Signals]:
    """The signals that end a run. Those that were ignored at the start stay so: nohup's SIGHUP."""
    known = (getattr(signal, name) for name in STOPPING if hasattr(signal, name))
    return [signum for signum in known if signal.getsignal(signum) is not signal.SIG_IGN]


@contextlib.contextmanager
def cleaned_up(clean_up: Callable[[], None]) -> Iterator[None]:
    """Until the trainer handles signals, one that ends the process runs `clean_up` before, and
    SIGUSR1 does nothing.
    """
    process = os.getpid()

    def end(signum: int, frame: object) -> None:
        if os.getpid() == process:  # not a data loader's worker
            clean_up()
        signal.signal(signum, signal.SIG_DFL)
        signal.raise_signal(signum)

    handlers = {}
    if threading.current_thread() is threading.main_thread():  # Python's condition
        handlers = {s: signal.signal(s, end) for s in stopping_signals() if s != signal.SIGINT}
        if hasattr(signal, SAVING):
            handlers[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        yield
    except Interrupted:
        handlers = {}  # a repeated signal would end the process with another exit code
        raise
    finally:
        for signum, handler in handlers.items():
            if (signum, handler) != (getattr(signal, SAVING, None), signal.SIG_DFL):
                signal.signal(signum, handler)  # one more SIGUSR1 would kill the process as it ends


class StopSignals:
    """Inside `with`, a signal that would end the process is only recorded, and so is SIGUSR1, which
    asks for a checkpoint. Repeated, it is ignored for two seconds; then it ends the process.

    Attributes:
        received: the first signal to stop
        save_wanted: whether a process was asked to save; whoever does sets it to False
    """

    def __init__(self):
        self.received: int | None = None
        self.save_wanted = self._asked = self._saved = False
        self._agreed = 0
        self._largest = AsyncMax()

    def __enter__(self) -> "StopSignals":
        self.received, self._agreed = None, 0
        self.save_wanted = self._asked = self._saved = False
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():  # Python's condition
            for signum in stopping_signals():
                self._handlers[signum] = signal.signal(signum, self._stop)
            if hasattr(signal, SAVING):
                self._handlers[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._ask)
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        self._saved = kind is not None and issubclass(kind, Interrupted)
        if not self._saved:  # else a repeated signal would end the process with another exit code
            self._restore()

    def arrived(self, save: bool = False) -> bool:
        """Whether any process has received a signal to stop; all get the same answer. With `save`,
        or after SIGUSR1, `save_wanted` becomes True on all. On all processes.
        """
        number = 2 * (self.received or 0) + (save or self._asked)
        self._asked = False
        number = self._largest(number)
        self._agreed = self._agreed or number // 2
        self.save_wanted |= number % 2 == 1
        return self._agreed > 0

    def check(self) -> None:
        """Raises Interrupted if a signal arrived; for moments worth saving. On all processes."""
        if self.arrived():
            raise Interrupted(self._agreed)

    def _ask(self, signum: int, frame: object) -> None:
        self._asked = True

    def _stop(self, signum: int, frame: object) -> None:
        if self.received is None:
            self.received, self._since = signum, time.monotonic()
        elif time.monotonic() - self._since >= SECONDS_IGNORED:
            if not self._saved:
                os.write(2, b"stopped before everything was saved\n")
                os._exit(1)
            self._restore()
            signal.raise_signal(signum)

    def _restore(self) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
