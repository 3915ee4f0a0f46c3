"""The `Server-Timing` header of an HTTP answer."""

from flask import g


def server_timing() -> str:
    """The header, with all stages so far (https://www.w3.org/TR/server-timing/)."""
    stages = g.stages if g.job is None else g.job.stages()
    return ", ".join(f"{name.removesuffix('_ms')};dur={value}" for name, value in stages.items())
