"""HTTP as tests speak it: a connection, a request, and an answer, whole or streamed."""

import http.client
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testing.answers import error_inside, parse_json


@dataclass
class Answer:
    """A whole HTTP answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body, which is strict JSON."""
        assert self.headers.get_content_type() == "application/json"
        return parse_json(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The inside of the one error form."""
        return error_inside(self.json, self.headers["X-Request-Id"])


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's file."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Stream:
    """A streamed answer that is read event by event."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        self._response = connection.getresponse()
        assert self._response.status == 200
        assert self._response.headers.get_content_type() == "text/event-stream"
        self.headers = self._response.headers
        self.request_id = self.headers["X-Request-Id"]

    def events(self) -> Iterator[str]:
        """The data of each event; the body's end ends it, a broken body raises."""
        # Not by readline(), which takes the end of a broken body for a proper one.
        unread = b""
        while data := self._response.read1(65536):
            *events, unread = (unread + data).split(b"\n\n")
            for event in events:
                assert event.startswith(b"data: ")
                yield event.decode().removeprefix("data: ")
        assert unread == b""

    def text(self) -> str:
        """The whole text of a stream that must end well."""
        *pieces, last, done = list(self.events())
        self.close()
        assert done == "[DONE]"
        assert "finish_reason" in parse_json(last)
        return "".join(parse_json(piece)["response"] for piece in pieces)

    def broken(self) -> list[Any]:
        """The documents of a stream that must break: no `[DONE]`, no proper end of the body."""
        documents: list[Any] = []
        try:
            for event in self.events():
                assert event != "[DONE]"
                documents.append(parse_json(event))
        except (http.client.IncompleteRead, ConnectionError):
            return documents
        finally:
            self.close()
        raise AssertionError("the broken stream ended like a whole one")

    def close(self) -> None:
        """Leave."""
        self._response.close()
        self._connection.close()


def send(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    document: Any = None,
    **headers: str,
) -> None:
    """Send a request and do not wait for its answer."""
    body = None if document is None else json.dumps(document).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, {"Content-Type": "application/json", **named})


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    document: Any = None,
    **headers: str,
) -> Answer:
    """One request on a connection that may be used again."""
    send(connection, method, path, document, **headers)
    return read_answer(connection.getresponse())


def read_answer(response: http.client.HTTPResponse) -> Answer:
    """The whole answer."""
    return Answer(response.status, response.headers, response.read())


def raw_answer(connection: socket.socket) -> Answer:
    """The answer to what was sent on a plain socket."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    with response:
        return read_answer(response)
