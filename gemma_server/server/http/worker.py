"""Connections of gunicorn's thread worker: fast for kept connections, and not held up by clients
that stall, never close, or never send anything."""

import errno
import logging
import os
import select
import selectors
import socket
import struct
import time
from collections import deque
from concurrent.futures import Future
from functools import partial
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

from gemma_server.api.document import MAX_BODY_BYTES
from gemma_server.server.http.connection import AnswerSocket
from gemma_server.server.http.request_head import PlainParser

logger = logging.getLogger(__name__)

SOCKET_TIMEOUT_S = 30  # for a client to send its request, or to read more of its answer
LINGER_MS = 5  # a thread waits so long for a connection's next request
AWAKE_S = 300e-6  # of that it spins, if it is the only one: waking up costs as much
_CLOSING_S = 2.0  # for a client to close once the server has
_READ_BYTES = 1 << 16
_NO_FILE_S = 0.05


class HttpWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn is untyped
    """Accepts connections in its main thread, which never waits for any of them. A connection has a
    thread while one of its requests is read and answered, and for a moment afterwards."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.handled: set[TConn] = set()  # connections that have a thread
        self.closing: deque[TConn] = deque()  # connections that wait for their clients to close
        # With one CPU, the client could not run while a thread spins.
        self.awake_s = AWAKE_S if (os.cpu_count() or 1) > 1 else 0.0

    def set_accept_enabled(self, enabled: bool) -> None:
        """Accept new connections or not. A worker that ends closes its listeners at once: else the
        kernel would go on accepting for it."""
        super().set_accept_enabled(enabled)
        if not self.alive:
            for listener in self.sockets:
                listener.close()

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection; it stays in the backlog while no file descriptor is free."""
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            logger.error("cannot take a connection: %s", error)
            time.sleep(_NO_FILE_S)  # the listener stays readable

    def enqueue_req(self, conn: TConn) -> None:
        """Hand a connection to a thread; a new one only once it has sent something."""
        if conn.initialized or conn.data_ready:
            super().enqueue_req(conn)
            return
        limit = struct.pack("ll", SOCKET_TIMEOUT_S, 0)
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        if not self.cfg.is_ssl:
            conn.sock = AnswerSocket.of(conn.sock)
            conn.parser = PlainParser(self.cfg, conn.sock, conn.client)
        conn.sock.setblocking(False)
        conn.set_timeout()
        self.pending_conns.append(conn)
        self._watch(conn, partial(self.on_pending_socket_readable, conn))

    def handle(self, conn: TConn) -> Any:
        """Answer a connection's requests as long as the next one comes at once.

        gunicorn hands a connection back to its main thread after each answer, which hands it to
        another thread when there is more to read. These two changes of thread take as long as the
        rest of a short request.
        """
        self.handled.add(conn)
        try:
            while (kept := self._handle_one(conn)) is True and self._has_more(conn):
                pass
            return kept
        finally:
            self.handled.discard(conn)

    def handle_request(self, req: Any, conn: TConn) -> Any:
        """Answer one request, and flush an answer that has no body."""
        if _announced_bytes(req) > MAX_BODY_BYTES:
            req.must_close = True  # the body will not be read, and the answer says so
        try:
            return super().handle_request(req, conn)
        finally:
            if isinstance(conn.sock, AnswerSocket):
                conn.sock.flush()

    def finish_request(self, conn: TConn, fs: Future[Any]) -> None:
        """Wait for the next request, or close the connection.

        gunicorn waits in this thread up to 2 seconds for each client to close first: with thirty
        that do not, the master takes the worker for dead.
        """
        gone = fs.cancelled() or fs.exception() is not None
        if gone or fs.result() or self.cfg.is_ssl:
            super().finish_request(conn, fs)
            return
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:  # disconnected, or closed by gunicorn amid an answer
            self.nr_conns -= 1
            conn.close()
            return
        conn.timeout = time.monotonic() + _CLOSING_S
        self.closing.append(conn)
        self._watch(conn, partial(self._read_away, conn))

    def murder_pending(self) -> None:
        """Close connections that have waited long enough."""
        super().murder_pending()
        while self.closing and self.closing[0].timeout <= time.monotonic():
            self._close(self.closing[0])

    def _cap_keepalive(self, deadline: float) -> None:
        """Limit how long a worker that ends waits for connections that have sent nothing."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def _handle_one(self, conn: TConn) -> Any:
        if isinstance(conn.sock, AnswerSocket):
            conn.sock.read_within(SOCKET_TIMEOUT_S)
            conn.sock.begin_request()
        return super().handle(conn)

    def _has_more(self, conn: TConn) -> bool:
        """Whether the next request comes within `LINGER_MS`, while no other needs the thread."""
        if not self.alive or conn.is_http2 or self.tpool._work_queue.qsize():
            return False
        if conn.parser.unreader.buf.getvalue():
            return True
        poll = select.poll()
        poll.register(conn.sock, select.POLLIN)
        began = time.perf_counter()
        while len(self.handled) == 1 and time.perf_counter() - began < self.awake_s:
            if poll.poll(0):
                return True
        return bool(poll.poll(LINGER_MS))

    def _watch(self, conn: TConn, act: Any) -> None:
        self.poller.register(conn.sock, selectors.EVENT_READ, act)

    def _read_away(self, conn: TConn, sock: socket.socket) -> None:
        """Read and drop what still comes: unread bytes would make the kernel reset the connection,
        and the client would lose the end of the answer."""
        try:
            ended = not sock.recv(_READ_BYTES)
        except BlockingIOError:
            ended = False
        except OSError:
            ended = True
        if ended:
            self._close(conn)

    def _close(self, conn: TConn) -> None:
        self.closing.remove(conn)
        self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()


def _announced_bytes(req: Any) -> int:
    """The body's length by its header, which gunicorn has checked; 0 for a chunked body."""
    return next((int(value) for name, value in req.headers if name == "CONTENT-LENGTH"), 0)
