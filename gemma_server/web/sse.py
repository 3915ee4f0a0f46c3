"""Server-sent events: one line of JSON and a blank line each."""

import errno
from collections.abc import Iterator
from typing import Any

from flask import Response, json

from gemma_server.errors import RequestError
from gemma_server.web.errors import body_of


class BrokenBody(BrokenPipeError):
    """Ends a stream in the middle: the connection closes without the body's last chunk.

    To the server it looks like a client that went away, which is no news for its log.
    """

    def __init__(self) -> None:
        super().__init__(errno.EPIPE, "the stream ends early")


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
