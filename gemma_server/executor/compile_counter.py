"""Counts XLA's compilations for one model, to check that nothing compiles after ready."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_EVENT = "/jax/core/compile/backend_compile_duration"
_thread = threading.local()


class CompileCounter:
    """Counts the compilations in the blocks of `blamed`; stays at 0 without a device.

    jax reports a compilation in the thread that waits for it.
    """

    def __init__(self) -> None:
        self.programs = 0
        self.seconds = 0.0

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Count what this thread compiles in the block, here and in no other counter."""
        _listen()
        before = getattr(_thread, "counter", None)
        _thread.counter = self
        try:
            yield
        finally:
            _thread.counter = before


@cache
def _listen() -> None:
    """Register one listener a process; it counts for the counter of the thread that calls it."""
    import jax.monitoring

    jax.monitoring.register_event_duration_secs_listener(_on_event)


def _on_event(event: str, duration_secs: float, **_: str | int) -> None:
    counter: CompileCounter | None = getattr(_thread, "counter", None)
    if event == _EVENT and counter is not None:
        counter.programs += 1
        counter.seconds += duration_secs
