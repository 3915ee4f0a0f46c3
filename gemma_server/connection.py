"""A client's connection, as the worker uses it."""

import socket
from typing import Any


class AnswerSocket(socket.socket):
    """Sends an answer's head together with the first part of its body.

    gunicorn sends them one after the other: two packets, and a client that wakes up twice.
    """

    _head: bytes = b""

    @classmethod
    def of(cls, plain: socket.socket) -> "AnswerSocket":
        """The same connection; `plain` is of no use afterwards."""
        timeout = plain.gettimeout()
        connection = cls(plain.family, plain.type, plain.proto, plain.detach())
        connection.settimeout(timeout)
        return connection

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
