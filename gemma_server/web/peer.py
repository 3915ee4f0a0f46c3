"""The client that waits for the answer: its deadline, its priority, whether it has disconnected."""

import re
import select
import socket
import time
from collections.abc import Callable

from flask import request

from gemma_server.api.schemas import check_priority
from gemma_server.engine.priority import Priority
from gemma_server.errors import InvalidRequest

# The peer sends no more. Only Linux reports this before something is sent.
_HALF_CLOSED = getattr(select, "POLLRDHUP", 0)
_GONE = select.POLLHUP | select.POLLERR


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


def priority() -> Priority:
    """The class in which the request waits, from `X-Priority`.

    Raises:
        InvalidRequest: there is no such class.
    """
    return check_priority(request.headers.get("X-Priority"), "X-Priority")


def peer_name() -> str:
    """A name of the connection: the peer's address, or the number of a Unix socket."""
    environ = request.environ
    if environ.get("REMOTE_PORT"):
        return f"{environ['REMOTE_ADDR']}:{environ['REMOTE_PORT']}"
    connection: socket.socket | None = environ.get("gunicorn.socket")
    return "" if connection is None else str(connection.fileno())


def disconnect_check() -> Callable[[], bool]:
    """A function that tells whether the client has disconnected, without reading.

    gunicorn hands the socket in; under a test client there is none. A client may close its sending
    half after the request and wait for the answer. Over TCP that looks as if it had closed
    everything, until something is sent: an interim answer finds out. Before HTTP/1.1 there are
    none, and such a client counts as disconnected.
    """
    connection: socket.socket | None = request.environ.get("gunicorn.socket")
    if connection is None:
        return lambda: False

    poke = getattr(connection, "poke", None)  # TLS sockets have none
    if request.environ["SERVER_PROTOCOL"] != "HTTP/1.1":
        poke = None

    def disconnected() -> bool:
        # Not by reading: bytes of a next request would hide the end. A new poll object each time,
        # since the prompts of a list ask from several threads.
        poller = select.poll()
        poller.register(connection, _HALF_CLOSED)
        for _, state in poller.poll(0):
            if state & _GONE or poke is None:
                return True
            poke()
        return False

    return disconnected
