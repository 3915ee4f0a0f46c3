"""How a version is loaded beside others that answer, so that their streams hardly slow down."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

_NICENESS = 15  # a thread with it gets a 28th of the time that an engine's thread would take
# An engine's thread takes Python's lock a dozen times a step, and a thread that only computes keeps
# it for so long; 5 ms, Python's default, would double the step.
_SWITCH_S = 0.0005


def step_back() -> None:
    """Let all other threads go before this one, and those that it starts. For good: only root may
    take it back."""
    if sys.platform == "linux":  # elsewhere it would be the whole process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


@contextlib.contextmanager
def short_turns() -> Iterator[None]:
    """Have Python's threads hand its lock over sooner while the block runs."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
