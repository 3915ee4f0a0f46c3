"""Where an answer's time went: the `Server-Timing` header, and the same numbers in the body."""

import time

from flask import g


def milliseconds(seconds: float) -> float:
    """As answers have it."""
    return round(seconds * 1000, 3)


class timed:
    """Adds the time that a block takes to a stage of the request."""

    def __init__(self, stage: str) -> None:
        self._name = f"{stage}_ms"

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *exc_info: object) -> None:
        spent, timings = milliseconds(time.perf_counter() - self._began), g.timings
        timings[self._name] = round(timings.get(self._name, 0.0) + spent, 3)


def server_timing() -> str:
    """The header, of all that is known so far (https://www.w3.org/TR/server-timing/)."""
    return ", ".join(f"{name.removesuffix('_ms')};dur={value}" for name, value in g.timings.items())
