"""A client of frames, written from docs/frames.md alone."""

import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "docs" / "frames.json").read_text()
)
ECHO, RAW, REQUEST, PIECE, FINISHED, FAILED = 0, 1, 2, 3, 4, 255

Answer = tuple[int, Any]  # a type, and bytes or what the JSON says


def packed(kind: int, body: bytes) -> bytes:
    """A frame as it is on the wire."""
    return struct.pack(">IB", 1 + len(body), kind) + body


def request(**fields: Any) -> bytes:
    """A request's frame."""
    return packed(REQUEST, json.dumps(fields).encode())


class Peer:
    """One connection, which blocks for at most ten seconds."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        try:
            self.sock.connect(str(path))
        except OSError:
            self.sock.close()
            raise

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.sock.close()

    def send(self, *frames: bytes) -> None:
        """All of them at once."""
        self.sock.sendall(b"".join(frames))

    def ask(self, **fields: Any) -> None:
        """Send a request."""
        self.send(request(**fields))

    def answer(self) -> Answer | None:
        """The next frame; None when the server has closed."""
        head = self._exactly(4)
        if head is None:
            return None
        whole = self._exactly(*struct.unpack(">I", head))
        assert whole is not None, "the server closed amid a frame"
        kind, body = whole[0], whole[1:]
        return kind, body if kind in (ECHO, RAW) else json.loads(body)

    def error(self) -> dict[str, Any]:
        """The next frame, which tells of an error."""
        answer = self.answer()
        assert answer is not None
        kind, document = answer
        assert kind == FAILED, answer
        assert (
            {"status", "error"}
            <= set(document)
            <= {"id", "status", "error", "retry_after_s", "about"}
        )
        assert {"type", "message", "param", "code", "request_id"} <= set(document["error"])
        found: dict[str, Any] = {**document["error"], "status": document["status"]}
        return found | {"id": document.get("id"), "about": document.get("about")}

    def echo(self, body: bytes = b"?") -> bytes:
        """There and back."""
        self.send(packed(ECHO, body))
        answer = self.answer()
        assert answer is not None
        assert answer[0] == ECHO, answer
        echoed: bytes = answer[1]
        return echoed

    def whole(self, name: int | str) -> tuple[str, dict[str, Any]]:
        """The pieces of a request that is the only one at work, joined, and its end."""
        text = ""
        while True:
            answer = self.answer()
            assert answer is not None
            kind, document = answer
            assert document["id"] == name
            if kind == FINISHED:
                return text, document
            assert kind == PIECE, answer
            text += document["response"]

    def answers(self) -> Iterator[Answer]:
        """All that come until the server closes."""
        while (answer := self.answer()) is not None:
            yield answer

    def _exactly(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            try:
                more = self.sock.recv(count - len(data))
            except ConnectionResetError:  # it closed with something of ours unread
                more = b""
            if not more:
                return None
            data += more
        return data
