"""The client that waits for the answer: its deadline, and whether it has disconnected."""

import re
import select
import socket
import time
from collections.abc import Callable

from flask import request

from gemma_server.errors import InvalidRequest

# The peer has closed its end. Only Linux reports this before something is sent.
_HANGUP = getattr(select, "POLLRDHUP", select.POLLHUP)


def deadline() -> float | None:
    """The client's time limit on the monotonic clock, from `X-Request-Timeout-Ms`.

    Raises:
        InvalidRequest: it is not a valid number.
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
    """A function that tells whether the client has disconnected, without reading.

    gunicorn hands the socket in; under a test client there is none. A client that half-closes
    after sending counts as disconnected: HTTP clients do not do that.
    """
    connection: socket.socket | None = request.environ.get("gunicorn.socket")
    if connection is None:
        return lambda: False

    def disconnected() -> bool:
        # Not by reading: bytes of a next request would hide the end. A new poll object each time,
        # since the prompts of a list ask from several threads.
        poller = select.poll()
        poller.register(connection, _HANGUP)
        return bool(poller.poll(0))

    return disconnected
