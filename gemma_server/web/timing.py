"""Where an HTTP answer's time went: its `Server-Timing` header."""

from flask import g


def server_timing() -> str:
    """The header, of all that is known so far (https://www.w3.org/TR/server-timing/)."""
    stages = g.stages if g.job is None else g.job.timings()
    return ", ".join(f"{name.removesuffix('_ms')};dur={value}" for name, value in stages.items())
