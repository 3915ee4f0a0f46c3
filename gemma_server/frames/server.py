"""A Unix socket that speaks frames: one thread reads and writes, a worker pool does slow work."""

import contextlib
import logging
import os
import resource
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from gemma_server.errors import Overloaded
from gemma_server.frames.codec import ECHO, BrokenFraming, kind_of
from gemma_server.frames.connection import Connection
from gemma_server.frames.exchange import failure
from gemma_server.frames.service import Service
from gemma_server.frames.session import Session
from gemma_server.frames.worker_pool import WorkerPool

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 4096
_UMASK = 0o117  # the socket gets mode 0660: its owner and group
_BACKLOG = 1024
_READ_BYTES = 1 << 13  # so that one client's small frames do not delay others
_MORE_BYTES = 1 << 16  # of a long one
_LOOK_S = 1.0  # between two checks for stalled clients
_AT_ONCE_S = 400e-6  # a frame that follows the last so soon is likely followed by others
_SPIN_S = 100e-6  # poll so long for these without going to sleep

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_Events = list[tuple[selectors.SelectorKey, int]]


class FrameServer:
    """Listens once it is made; serves from `start` to `stop`.

    If its thread dies, `on_death` is called with the exception.

    Raises:
        OSError: the socket cannot be made at this path.
    """

    def __init__(
        self,
        path: Path,
        service: Service,
        on_death: Callable[[BaseException], None],
        *,
        threads: int,
    ) -> None:
        self._path = path
        self._service, self._workers, self._on_death = service, WorkerPool(threads), on_death
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = min(MAX_CONNECTIONS, descriptors // 2)  # the rest is for others
        self._listener = _listen(path)
        self._inode = path.stat().st_ino
        self._sessions: dict[Connection, Session] = {}
        self._attention: deque[Connection] = deque()  # other threads ask to look at these
        self._waked, self._waker = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for ours in (self._listener, self._waked):
            ours.setblocking(False)
            self._selector.register(ours, _READ)
        self._waker.setblocking(False)
        self._listens = True
        self._draining = self._stopping = False
        self._looked_at = time.monotonic()
        self._quick = False  # the last frame came within `_AT_ONCE_S`
        self._may_spin = (os.cpu_count() or 1) > 1  # else the client could not run then
        self._thread = threading.Thread(target=self._run, name="frames", daemon=True)

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._sessions)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def drain(self) -> None:
        """Accept no more connections; the open ones go on. A signal handler may call this."""
        self._draining = True
        self._wake()

    def stop(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` for requests in flight, then close all connections."""
        self.drain()
        until = time.monotonic() + timeout_s
        while self._busy() and time.monotonic() < until:
            time.sleep(0.02)
        self._stopping = True
        self._wake()
        if threading.current_thread() is not self._thread:  # it may report its own death
            self._thread.join(_LOOK_S)

    def _busy(self) -> bool:
        # The worker pool first: it is busy until its answers are sent, or kept to be sent.
        return self._workers.busy or any(each.unsent for each in list(self._sessions))

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: a wake-up is pending already
            self._waker.send(b"\0")

    def _run(self) -> None:
        try:
            self._take_turns()
        except BaseException as error:  # nobody else would notice
            self._on_death(error)

    def _take_turns(self) -> None:
        while not self._stopping:
            for key, events in self._wait():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._waked:
                    self._attend()
                else:
                    self._serve(key.data, events)
            if time.monotonic() - self._looked_at > _LOOK_S:
                self._look_around()
        self._stop_listening()
        for connection in list(self._sessions):
            self._close(connection)
        for ours in (self._selector, self._waked, self._waker):
            ours.close()

    def _wait(self) -> _Events:
        """The next events. Spins while a client sends at once again: waking up takes longer."""
        began = time.perf_counter()
        while self._quick and time.perf_counter() - began < _SPIN_S:
            if events := self._selector.select(0):
                return events
        events = self._selector.select(_LOOK_S)
        self._quick = self._may_spin and time.perf_counter() - began < _AT_ONCE_S
        return events

    def _serve(self, connection: Connection, events: int) -> None:
        if connection not in self._sessions:  # closed a moment ago
            return
        try:
            if events & _WRITE:
                connection.send_rest()
            if events & _READ:
                self._read(connection)
        except Exception:  # a bug of ours must not end other connections
            logger.exception("a connection failed")
            connection.broken = True
        self._watch(connection)

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(max(_READ_BYTES, min(connection.missing, _MORE_BYTES)))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            connection.hung_up()
        try:
            for whole in connection.frames(data):
                if kind_of(whole) == ECHO:
                    connection.send(whole)
                else:
                    self._sessions[connection].take(whole)
        except BrokenFraming as error:
            connection.end_with(error)

    def _watch(self, connection: Connection) -> None:
        """Watch for the events that the connection waits for, or close it."""
        if connection.broken or (connection.ending and not connection.unsent):
            self._close(connection)
            return
        wanted = _READ * connection.readable | _WRITE * connection.unsent
        if wanted != connection.watched:
            connection.watched = wanted
            self._selector.modify(connection.sock, wanted, connection)

    def _accept(self) -> None:
        if not self._listens:  # since a moment ago
            return
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            logger.error("cannot take a connection: %s", error)
            self._selector.unregister(self._listener)  # until the next look around
            self._listens = False
            return
        if self.connections >= self._most:
            _turn_away(sock, self._most)
            return
        connection = Connection(sock, self._ask_for_attention)
        connection.watched = _READ
        session = Session(connection.send, self._service, self._workers)
        self._sessions[connection] = session
        self._selector.register(sock, _READ, connection)

    def _ask_for_attention(self, connection: Connection) -> None:
        if threading.get_ident() != self._thread.ident:  # else it is looked at anyway
            self._attention.append(connection)
            self._wake()

    def _attend(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._waked.recv(_MORE_BYTES)
        while self._attention:
            connection = self._attention.popleft()
            if connection in self._sessions:
                self._watch(connection)
        if self._draining:
            self._stop_listening()

    def _look_around(self) -> None:
        self._looked_at = time.monotonic()
        if not self._listens and not self._draining:
            self._selector.register(self._listener, _READ)
            self._listens = True
        for connection in list(self._sessions):
            connection.check_time(self._looked_at)
            self._watch(connection)

    def _close(self, connection: Connection) -> None:
        self._selector.unregister(connection.sock)
        session = self._sessions.pop(connection)
        connection.close()
        session.cancel()

    def _stop_listening(self) -> None:
        if self._listener.fileno() < 0:
            return
        if self._listens:
            self._selector.unregister(self._listener)
            self._listens = False
        self._listener.close()
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:  # else another server's by now
                self._path.unlink()


def _listen(path: Path) -> socket.socket:
    """Replace a stale socket atomically by one that already listens."""
    making = path.with_name(("~" + path.name)[: len(path.name)])  # no longer: it has a limit
    with contextlib.suppress(FileNotFoundError):
        if making.is_socket():
            making.unlink()
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(_UMASK)
    try:
        listener.bind(str(making))
    finally:
        os.umask(before)
    listener.listen(_BACKLOG)
    making.rename(path)  # no server listens there: that was checked
    return listener


def _turn_away(sock: socket.socket, most: int) -> None:
    error = Overloaded(f"{most} connections are open already", retry_after_s=1)
    error.code = "too_many_connections"
    with sock, contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.send(failure(error, None).frame)
