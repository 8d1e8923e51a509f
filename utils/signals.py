import os
import signal
import threading

from utils.distributed import Question
from utils.errors import Interrupted


class StopSignals:
    """Within `with`, the first SIGINT or SIGTERM is only noted, the second ends the process at once.

    `check` raises Interrupted once one was noted, by any of the run's processes: called where the state is worth saving.
    """

    def __init__(self):
        self.received: int | None = None
        self._agreed = 0
        self._largest = Question()

    def __enter__(self) -> "StopSignals":
        self.received, self._agreed = None, 0
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def arrived(self) -> bool:
        """Whether a signal was noted: the same answer on all processes, which must ask equally often."""
        self._agreed = self._agreed or self._largest(self.received or 0)
        return self._agreed > 0

    def check(self) -> None:
        if self.arrived():
            raise Interrupted(self._agreed)

    def _handle(self, signum: int, frame: object) -> None:
        if self.received is not None:
            os._exit(128 + signum)
        self.received = signum
