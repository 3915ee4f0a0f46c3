"""One client's socket: frames that come in, and bytes that wait to be sent."""

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from gemma_server.frames.codec import BrokenFraming, FrameDecoder
from gemma_server.frames.exchange import failure

PAUSE_BYTES = 1 << 20  # unsent; above this the client is not read from: backpressure
MAX_UNSENT_BYTES = 16 << 20  # above this the connection is closed
_PIECE_BYTES = 256  # overhead of a kept frame
STALLED_S = 30.0  # limit for the rest of a frame, or for a client that takes nothing


class Connection:
    """Belongs to the server's thread; only `send` may be called by any thread.

    `attend` asks the server's thread to look at this connection again.
    """

    def __init__(self, sock: socket.socket, attend: Callable[["Connection"], None]) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.watched = 0  # the events that the server's selector watches it for
        self.ending = False  # it closes as soon as all is sent
        self.broken = False  # the peer has disconnected, or is given up
        self._attend = attend
        self._decoder = FrameDecoder()
        self._began_at = 0.0  # when the frame that is not whole yet began
        self._sending = threading.Lock()  # guards the socket's sending side, and what follows
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._took_at = 0.0  # when the peer last took some of them

    @property
    def missing(self) -> int:
        """Bytes of a frame that has begun."""
        return self._decoder.missing

    @property
    def unsent(self) -> bool:
        """Whether some bytes wait to be sent."""
        return bool(self._unsent)

    @property
    def readable(self) -> bool:
        """Whether to read from the peer: it is not ending, and little is unsent."""
        return not self.ending and self._unsent_bytes < PAUSE_BYTES

    def frames(self, data: bytes) -> Iterable[bytes]:
        """The frames that are whole with this data.

        Raises:
            BrokenFraming: after the frames before it.
        """
        return (data,) if self._decoder.is_one(data) else self._split(data)

    def hung_up(self) -> None:
        """The peer sends no more."""
        if self._decoder.waits:
            self.send(failure(_incomplete("the connection ends amid a frame"), None).frame)
        self.broken = True

    def end_with(self, error: Exception) -> None:
        """Send the error, and close once all is sent."""
        self.ending = True
        self.send(failure(error, None).frame)

    def check_time(self, now: float) -> None:
        """End the connection if the peer has stalled for too long."""
        self.send_rest()  # the selector only tells of a peer that has taken most of it
        if not self.readable:
            self._began_at = now  # the wait is ours: we do not read
        if self._unsent and now - self._took_at > STALLED_S:
            self.broken = True
        elif self._decoder.waits and not self.ending and now - self._began_at > STALLED_S:
            self.end_with(_incomplete(f"the rest of a frame did not come within {STALLED_S:g} s"))

    def send(self, whole: bytes) -> None:
        """Send a frame; what the peer does not take at once is kept."""
        with self._sending:
            if self.broken:
                return
            given = 0 if self._unsent else self._give(whole)
            if given == len(whole):
                return
            if not self._unsent:
                self._took_at = time.monotonic()
            # One answer may be longer than the limit: only what waited before it counts.
            self.broken = self.broken or self._unsent_bytes > MAX_UNSENT_BYTES
            self._unsent.append(memoryview(whole)[given:])
            self._unsent_bytes += len(whole) - given + _PIECE_BYTES
        self._attend(self)

    def send_rest(self) -> None:
        """Send what the peer takes."""
        with self._sending:
            while self._unsent and not self.broken and (given := self._give(self._unsent[0])):
                self._took_at = time.monotonic()
                self._unsent_bytes -= given
                rest = self._unsent.popleft()[given:]
                if rest:
                    self._unsent.appendleft(rest)
                else:
                    self._unsent_bytes -= _PIECE_BYTES

    def close(self) -> None:
        """Close the socket; nothing is sent any more."""
        with self._sending:
            self.broken = True
            self._unsent.clear()
            self.sock.close()

    def _split(self, data: bytes) -> Iterator[bytes]:
        waited = self._decoder.waits
        for whole in self._decoder.feed(data):
            waited = False
            yield whole
        if self._decoder.waits and not waited:
            self._began_at = time.monotonic()

    def _give(self, data: bytes | memoryview) -> int:
        """How many bytes the kernel took."""
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.broken = True
            return 0


def _incomplete(message: str) -> BrokenFraming:
    return BrokenFraming("incomplete_frame", message)
