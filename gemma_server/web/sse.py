"""Server-sent events: one line of JSON and a blank line each."""

from collections.abc import Iterator
from typing import Any

from flask import Response, json

from gemma_server.errors import RequestError
from gemma_server.web.errors import body_of

DONE = b"data: [DONE]\n\n"


def event(document: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def failure(error: RequestError) -> bytes:
    """The event that says why a stream ends early."""
    return event(body_of(error))


def response(events: Iterator[bytes]) -> Response:
    """A streamed answer. Headers go out with the first event, so keep that one early."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return Response(events, mimetype="text/event-stream", headers=headers)
