"""gunicorn's thread worker as to its connections: quick for those who keep one, and unmoved by
those who stall, never close, or never say a word."""

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
LINGER_MS = 5  # that a thread stays with a connection for its next request
AWAKE_S = 300e-6  # of it without going to sleep, if it is the only one: waking up costs as much
_CLOSING_S = 2.0  # for a client to close once the server has
_READ_BYTES = 1 << 16
_NO_FILE_S = 0.05


class HttpWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn is untyped
    """Takes connections in its main thread, which never waits for any of them; a connection has a
    thread while a request of it is being read and answered, and for a moment behind."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.handled: set[TConn] = set()  # connections that have a thread
        self.closing: deque[TConn] = deque()  # that wait for their clients to close
        # On one processor the client could not run while it is awaited.
        self.awake_s = AWAKE_S if (os.cpu_count() or 1) > 1 else 0.0

    def set_accept_enabled(self, enabled: bool) -> None:
        """Take new connections or not; a worker that ends closes its listeners at once, lest the
        kernel go on accepting for it."""
        super().set_accept_enabled(enabled)
        if not self.alive:
            for listener in self.sockets:
                listener.close()

    def accept(self, listener: socket.socket) -> None:
        """Take a connection; while there is no file descriptor for it, it waits."""
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            logger.error("cannot take a connection: %s", error)
            time.sleep(_NO_FILE_S)  # the listener stays readable

    def enqueue_req(self, conn: TConn) -> None:
        """Hand a connection to a thread; a new one not before it has said something."""
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
        """Answer a connection's requests as long as they come at once.

        gunicorn hands a connection back to its main thread after each answer, and that one to
        another thread when there is more to read: two changes of thread, which take as long as
        the rest of a short request.
        """
        self.handled.add(conn)
        try:
            while (kept := self._handle_one(conn)) is True and self._has_more(conn):
                pass
            return kept
        finally:
            self.handled.discard(conn)

    def handle_request(self, req: Any, conn: TConn) -> Any:
        """Answer one request, a head without a body too."""
        if _announced_bytes(req) > MAX_BODY_BYTES:
            req.must_close = True  # nobody will read all of it, and the answer says so
        try:
            return super().handle_request(req, conn)
        finally:
            if isinstance(conn.sock, AnswerSocket):
                conn.sock.flush()

    def finish_request(self, conn: TConn, fs: Future[Any]) -> None:
        """Wait for the next request, or close the connection.

        gunicorn waits in this thread, up to 2 seconds each time, for a client to close first:
        thirty that do not, and the master takes the worker for dead.
        """
        gone = fs.cancelled() or fs.exception() is not None
        if gone or fs.result() or self.cfg.is_ssl:
            super().finish_request(conn, fs)
            return
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:  # the client is gone, or gunicorn has closed it amid an answer
            self.nr_conns -= 1
            conn.close()
            return
        conn.timeout = time.monotonic() + _CLOSING_S
        self.closing.append(conn)
        self._watch(conn, partial(self._read_away, conn))

    def murder_pending(self) -> None:
        """Close what has been waited for long enough."""
        super().murder_pending()
        while self.closing and self.closing[0].timeout <= time.monotonic():
            self._close(self.closing[0])

    def _cap_keepalive(self, deadline: float) -> None:
        """A worker that ends waits no longer than this for connections that say nothing."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def _handle_one(self, conn: TConn) -> Any:
        if isinstance(conn.sock, AnswerSocket):
            conn.sock.read_within(SOCKET_TIMEOUT_S)
        return super().handle(conn)

    def _has_more(self, conn: TConn) -> bool:
        """Whether the next request comes within a moment, while no other needs the thread."""
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
        """What still comes would make the kernel take back the end of the answer."""
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
    """The length of the body by its header, which gunicorn has checked; 0 if it comes in chunks."""
    return next((int(value) for name, value in req.headers if name == "CONTENT-LENGTH"), 0)
