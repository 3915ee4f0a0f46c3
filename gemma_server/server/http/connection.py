"""A client's connection, as the worker uses it."""

import errno
import math
import os
import socket
import struct
import time
from typing import Any


class AnswerSocket(socket.socket):
    """Sends an answer's head with the first part of its body, and can limit the time to read.

    gunicorn sends head and body separately: two packets, which wake the client twice.
    """

    _head: bytes = b""
    _read_until = math.inf  # on the monotonic clock

    @classmethod
    def of(cls, plain: socket.socket) -> "AnswerSocket":
        """The same connection; `plain` is of no use afterwards."""
        timeout = plain.gettimeout()
        connection = cls(plain.family, plain.type, plain.proto, plain.detach())
        connection.settimeout(timeout)
        return connection

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
