"""Who waits for the answer: until when, and whether still there."""

import re
import select
import socket
import time
from collections.abc import Callable

from flask import request

from gemma_server.errors import InvalidRequest

# The peer has closed its end. Only Linux tells this before something is sent.
_HANGUP = getattr(select, "POLLRDHUP", select.POLLHUP)


def deadline() -> float | None:
    """The client's time limit on the monotonic clock, from `X-Request-Timeout-Ms`.

    Raises:
        InvalidRequest: it is no such number.
    """
    header = request.headers.get("X-Request-Timeout-Ms")
    if header is None:
        return None
    if not re.fullmatch(r"[0-9]{1,10}", header) or not 1 <= int(header) <= 10**9:
        raise InvalidRequest(
            "X-Request-Timeout-Ms must be a whole number of milliseconds from 1 to 1000000000",
            param="X-Request-Timeout-Ms",
        )
    return time.monotonic() + int(header) / 1000


def disconnect_check() -> Callable[[], bool]:
    """Tells whether the client has closed its connection, without reading from it.

    gunicorn hands the socket in; under a test client there is none. A client that half-closes
    after sending counts as gone: HTTP clients do not do that.
    """
    connection: socket.socket | None = request.environ.get("gunicorn.socket")
    if connection is None:
        return lambda: False

    def disconnected() -> bool:
        # Not by reading: bytes behind the request would hide its end. A poll object of its own,
        # since the prompts of a list ask from several threads.
        poller = select.poll()
        poller.register(connection, _HANGUP)
        return bool(poller.poll(0))

    return disconnected
