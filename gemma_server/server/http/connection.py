"""A client's connection, as the worker uses it."""

import contextlib
import errno
import math
import os
import socket
import struct
import threading
import time
from typing import Any

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class AnswerSocket(socket.socket):
    """Sends an answer's head with the first part of its body, and can limit the time to read.

    gunicorn sends head and body separately: two packets, which wake the client twice.
    """

    _head: bytes = b""
    _read_until = math.inf  # on the monotonic clock
    _silent = False  # nothing of the current request's answer has been sent

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sending = threading.Lock()

    @classmethod
    def of(cls, plain: socket.socket) -> "AnswerSocket":
        """The same connection; `plain` is of no use afterwards."""
        timeout = plain.gettimeout()
        connection = cls(plain.family, plain.type, plain.proto, plain.detach())
        connection.settimeout(timeout)
        return connection

    def begin_request(self) -> None:
        """From now on nothing has been sent."""
        self._silent = True

    def poke(self) -> None:
        """Send an interim answer, once and only before the answer: a peer that has closed its
        socket, and not only its sending half, resets the connection.

        Clients drop `100 Continue` (RFC 9110, section 15.2), and HTTP/1.1 ones know it.
        """
        with self._sending, contextlib.suppress(OSError):
            if self._silent:
                self._silent = False
                super().sendall(_CONTINUE)

    def read_within(self, seconds: float) -> None:
        """Limit the total time of all reads from now on."""
        self._read_until = time.monotonic() + seconds
        whole, rest = divmod(seconds, 1)
        limit = struct.pack("ll", int(whole), int(rest * 1e6))
        self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Read some bytes.

        Raises:
            BlockingIOError: the time to read is over.
        """
        data = super().recv(bufsize, flags)
        if data and time.monotonic() > self._read_until:  # a peer that sends byte by byte
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return data

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send; a head is kept and sent with what comes next, or by `flush`."""
        with self._sending:
            self._silent = False
        head, self._head = self._head, b""
        if head:
            super().sendall(head + data, flags)
        elif data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n"):
            self._head = data
        else:
            super().sendall(data, flags)

    def flush(self) -> None:
        """Send a head that has no body."""
        head, self._head = self._head, b""
        if head:
            super().sendall(head)
