"""The threads that work on requests: as many as are needed, up to a limit."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from gemma_server.errors import Overloaded

LEAVING = 8  # accepted beyond the threads, some of which are about to be free


class WorkerPool:
    """`threads` threads. It accepts `LEAVING` more pieces of work than that, and refuses others."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "frames")
        self._lock = threading.Lock()  # guards the count
        self._places = threads + LEAVING
        self._taken = 0

    @property
    def busy(self) -> bool:
        """Whether any work is in flight."""
        return self._taken > 0

    def start(self, work: Callable[[], None]) -> None:
        """Do `work` in a thread.

        Raises:
            Overloaded: all threads are busy, or the system has no more.
        """
        with self._lock:
            if self._taken == self._places:
                raise Overloaded("all places are taken", retry_after_s=1)
            self._taken += 1
        try:
            self._pool.submit(self._do, work)
        except RuntimeError:  # the system has no thread left
            self._leave()
            raise Overloaded("no more threads can be started", retry_after_s=1) from None

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._taken -= 1
