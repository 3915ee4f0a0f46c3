"""Where an HTTP answer's time went: its `Server-Timing` header."""

from flask import g

from gemma_server.api.timing import timed as timed_in


def timed(stage: str) -> timed_in:
    """Adds the time that a block takes to a stage of the request."""
    return timed_in(g.timings, stage)


def server_timing() -> str:
    """The header, of all that is known so far (https://www.w3.org/TR/server-timing/)."""
    return ", ".join(f"{name.removesuffix('_ms')};dur={value}" for name, value in g.timings.items())
