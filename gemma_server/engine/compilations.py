"""Counts what XLA compiles, so that "nothing compiles after ready" can be watched."""

from collections.abc import Callable

import jax.monitoring

_EVENT = "/jax/core/compile/backend_compile_duration"


def count_compilations() -> Callable[[], int]:
    """Start counting; the returned function tells how many programs were compiled since."""
    seen = 0

    def on_event(event: str, duration_secs: float, **_: str | int) -> None:
        nonlocal seen
        seen += event == _EVENT

    jax.monitoring.register_event_duration_secs_listener(on_event)
    return lambda: seen
