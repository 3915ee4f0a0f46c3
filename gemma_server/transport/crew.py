"""The threads that work on requests, as many as are needed and no more than were allowed."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from gemma_server.errors import Overloaded


class Crew:
    """At most `threads` at work; what comes beyond that is refused, not queued."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "frames")
        self._free = threading.Semaphore(threads)

    def start(self, work: Callable[[], None]) -> None:
        """Do it in a thread.

        Raises:
            Overloaded: all are at work.
        """
        if not self._free.acquire(blocking=False):
            raise Overloaded("all places are taken", retry_after_s=1)
        self._pool.submit(self._do, work)

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        finally:
            self._free.release()
