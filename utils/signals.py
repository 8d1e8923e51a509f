import os
import signal
import threading

from utils.errors import Interrupted


class StopSignals:
    """Within `with`, the first SIGINT or SIGTERM is only noted, the second ends the process at once.

    `check` raises Interrupted once one was noted: called where the state is worth saving.
    """

    def __init__(self):
        self.received: int | None = None

    def __enter__(self) -> "StopSignals":
        self.received = None
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def check(self) -> None:
        if self.received is not None:
            raise Interrupted(self.received)

    def _handle(self, signum: int, frame: object) -> None:
        if self.received is not None:
            os._exit(128 + signum)
        self.received = signum
