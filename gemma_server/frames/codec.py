"""Frames on the wire: 4 bytes of length, big-endian, 1 byte of type, a body."""

import struct
from collections.abc import Iterator

from gemma_server.api.document import MAX_BODY_BYTES

ECHO, RAW, REQUEST, PIECE, FINISHED = range(5)
FAILED = 255
MAX_LENGTH = 1 + MAX_BODY_BYTES  # the type counts

_HEAD = struct.Struct(">IB")
_LENGTH = struct.Struct(">I")


class BrokenFraming(Exception):
    """From here on it is unknown where the next frame begins; `code` is for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def frame(kind: int, body: bytes) -> bytes:
    """A frame as it is on the wire."""
    return _HEAD.pack(1 + len(body), kind) + body


def kind_of(whole: bytes) -> int:
    """The type of a frame."""
    return whole[4]


def body_of(whole: bytes) -> bytes:
    """The body of a frame."""
    return whole[5:]


class FrameDecoder:
    """Cuts what comes over one connection into frames."""

    def __init__(self) -> None:
        self._rest = bytearray()  # the beginning of a frame
        self._wanted = 0  # bytes until there is something to cut

    @property
    def waits(self) -> bool:
        """Whether part of a frame has arrived."""
        return bool(self._rest)

    @property
    def missing(self) -> int:
        """Bytes still missing of the frame that has begun, as far as its length is known."""
        return self._wanted - len(self._rest) if self._rest else 0

    def is_one(self, data: bytes) -> bool:
        """Whether this is exactly one frame, as it almost always is."""
        return (
            not self._rest
            and 4 < len(data) <= 4 + MAX_LENGTH
            and _LENGTH.unpack_from(data)[0] == len(data) - 4
        )

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Whole frames, their heads included; the rest is kept for the next call.

        Raises:
            BrokenFraming: a length is not valid; the frames before it have been yielded.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return
            data = bytes(self._rest)
            self._rest.clear()
        begin, size = 0, len(data)
        while size - begin >= 4:
            end = begin + 4 + _checked(*_LENGTH.unpack_from(data, begin))
            if end > size:
                self._wanted = end - begin
                self._rest += data[begin:]
                return
            yield data if end - begin == size else data[begin:end]
            begin = end
        self._wanted = 4
        self._rest += data[begin:]


def _checked(length: int) -> int:
    if length == 0:
        raise BrokenFraming("empty_frame", "a frame of length 0 has no type")
    if length > MAX_LENGTH:
        raise BrokenFraming(
            "frame_too_large", f"a frame of {length} bytes; this server takes at most {MAX_LENGTH}"
        )
    return length
