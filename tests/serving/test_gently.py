"""Loading beside others: who steps back, and for how long."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gemma_server.serving.gently import short_turns, step_back


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness on Linux alone")
def test_a_thread_steps_back_with_those_that_it_starts_and_no_other() -> None:
    before = niceness()

    def started_by_it() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(niceness).result()

    with ThreadPoolExecutor(1, initializer=step_back) as pool:
        assert pool.submit(niceness).result() == before + 15
        assert pool.submit(started_by_it).result() == before + 15
    assert niceness() == before


def test_turns_are_short_while_a_version_is_loaded_and_as_before_after() -> None:
    before = sys.getswitchinterval()
    with short_turns():
        assert sys.getswitchinterval() < before
    assert sys.getswitchinterval() == before
