"""Where an answer's time went: the `Server-Timing` header, and the same numbers in the body."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from flask import g


def milliseconds(seconds: float) -> float:
    """As answers have it."""
    return round(seconds * 1000, 3)


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Add the time that this takes to a stage of the request."""
    began = time.perf_counter()
    try:
        yield
    finally:
        name = f"{stage}_ms"
        spent = milliseconds(time.perf_counter() - began)
        g.timings[name] = round(g.timings.get(name, 0.0) + spent, 3)


def server_timing() -> str:
    """The header, of all that is known so far (https://www.w3.org/TR/server-timing/)."""
    return ", ".join(f"{name.removesuffix('_ms')};dur={value}" for name, value in g.timings.items())
