"""Work whose cost grows with what a client sent: one piece at a time, so that the rest goes on."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from gemma_server.errors import Overloaded

Result = TypeVar("Result")

_HEAVY = 32 << 10  # bytes or characters; less than this takes about a millisecond
MOST_WAITING = 32  # each has a thread; those for health and refusals must stay free
_LONGEST_REST_S = 0.2
_waiting = threading.BoundedSemaphore(MOST_WAITING)
# One thread, too, since what a thread frees stays with its own part of glibc's heap: with each
# request in another thread, all of them would keep as much as the largest has taken.
_thread = ThreadPoolExecutor(1, "heavy")
_rest_until = 0.0  # on the monotonic clock; that thread's alone
_QUIET_S = 1.0
_ended_at: float | None = None  # on the monotonic clock; None when that has been told


def run(size: int, work: Callable[[], Result]) -> Result:
    """What `work` returns, which parses or encodes so many bytes or characters.

    Parsing holds Python's lock, and encoding takes a CPU: with many at once, health checks and the
    engine would wait for all of them. A little is done at once.

    Raises:
        Overloaded: too many wait already.
        Exception: what `work` raises.
    """
    if size < _HEAVY:
        return work()
    if not _waiting.acquire(blocking=False):
        raise Overloaded("too many large requests at once", retry_after_s=1)
    try:
        return _thread.submit(_paced, work).result()
    finally:
        _waiting.release()


def have_passed() -> bool:
    """Whether there were pieces and the last ended a while ago: true once, when they are forgotten
    and their answers sent."""
    global _ended_at
    passed = _ended_at is not None and time.monotonic() > _ended_at + _QUIET_S
    if passed:
        _ended_at = None
    return passed


def _paced(work: Callable[[], Result]) -> Result:
    """Do the work, in at most half of the thread's time: parsing holds Python's lock throughout."""
    global _rest_until, _ended_at
    time.sleep(max(0.0, _rest_until - time.monotonic()))
    began = time.monotonic()
    try:
        return work()
    finally:
        now = _ended_at = time.monotonic()
        _rest_until = now + min(now - began, _LONGEST_REST_S)
