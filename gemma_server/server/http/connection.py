"""A client's connection, as the worker uses it."""

import errno
import math
import os
import socket
import struct
import time
from typing import Any


class AnswerSocket(socket.socket):
    """Sends an answer's head together with the first part of its body, and reads for so long only.

    gunicorn sends them one after the other: two packets, and a client that wakes up twice.
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
        """Let what is read from now on take so long, all in all."""
        self._read_until = time.monotonic() + seconds
        whole, rest = divmod(seconds, 1)
        limit = struct.pack("ll", int(whole), int(rest * 1e6))
        self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Some bytes.

        Raises:
            BlockingIOError: they took too long.
        """
        data = super().recv(bufsize, flags)
        if data and time.monotonic() > self._read_until:  # a peer that sends byte by byte
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return data

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send, or keep a head for what comes next; `flush` if nothing does."""
        head, self._head = self._head, b""
        if head:
            super().sendall(head + data, flags)
        elif data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n"):
            self._head = data
        else:
            super().sendall(data, flags)

    def flush(self) -> None:
        """Send a head that no body followed."""
        head, self._head = self._head, b""
        if head:
            super().sendall(head)
