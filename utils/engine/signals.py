import os
import signal
import threading

from utils.engine.distributed import AsyncMax
from utils.errors import Interrupted


class StopSignals:
    """Inside `with`, a first SIGINT or SIGTERM is only recorded; a second one ends the process."""

    def __init__(self):
        self.received: int | None = None
        self._agreed = 0
        self._largest = AsyncMax()

    def __enter__(self) -> "StopSignals":
        self.received, self._agreed = None, 0
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():  # Python's condition
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._handlers[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)

    def arrived(self) -> bool:
        """Whether any process has received a signal; all get the same answer. On all processes."""
        self._agreed = self._agreed or self._largest(self.received or 0)
        return self._agreed > 0

    def check(self) -> None:
        """Raises Interrupted if a signal arrived; for moments worth saving. On all processes."""
        if self.arrived():
            raise Interrupted(self._agreed)

    def _handle(self, signum: int, frame: object) -> None:
        if self.received is not None:
            os._exit(128 + signum)
        self.received = signum
