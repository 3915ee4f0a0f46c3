"""The requests of one connection, and which of them are in flight."""

import re
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from gemma_server.api.caller import Caller
from gemma_server.api.document import parse
from gemma_server.errors import InvalidRequest, Overloaded, RequestError
from gemma_server.frames.codec import RAW, REQUEST, BrokenFraming, body_of, kind_of
from gemma_server.frames.envelope import open_envelope
from gemma_server.frames.exchange import Exchange, Id, failure
from gemma_server.frames.service import Service
from gemma_server.frames.worker_pool import WorkerPool

MAX_REQUESTS = 256  # in flight
MAX_RAWS = 16  # in flight and queued
MAX_REFUSED = 1000  # raw frames whose refusals wait for their turn
_UNKNOWN = "unknown"  # no operation has this name
_MAX_ID = 2**53 - 1  # the largest integer that every JSON reader keeps exact
_MAX_ID_LENGTH = 128
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can hold a lone surrogate; UTF-8 cannot


class Session:
    """Takes frames in the server's thread; the worker pool's threads answer them through `send`."""

    def __init__(
        self, send: Callable[[bytes], None], service: Service, workers: WorkerPool
    ) -> None:
        self._send, self._service, self._workers = send, service, workers
        self._name = f"frames {id(self)}"  # of the connection, while it is open
        self._lock = threading.Lock()  # guards all that follows
        self._requests: dict[Id, Exchange] = {}
        # The first is in flight; one without a body is refused when its turn comes.
        self._raws: deque[tuple[Exchange, bytes | None]] = deque()
        self._answers_raws = False  # a thread answers them now

    def take(self, whole: bytes) -> None:
        """Act on a frame that is no echo.

        Raises:
            BrokenFraming: the client could not tell any more which answer is for which frame.
        """
        kind, body = kind_of(whole), body_of(whole)
        try:
            if kind == RAW:
                self._take_raw(body)
            elif kind == REQUEST:
                self._take_request(parse(body))
            else:
                message = f"clients send no frames of type {kind}"
                raise InvalidRequest(message, code="unknown_type")
        except RequestError as error:
            self._refuse(error, "raw" if kind == RAW else _UNKNOWN, None, about=kind)

    def cancel(self) -> None:
        """Cancel all requests."""
        with self._lock:
            at_work = [*self._requests.values(), *(exchange for exchange, _ in self._raws)]
        for exchange in at_work:
            exchange.cancel()

    def _take_request(self, document: dict[str, Any]) -> None:
        """Start the request, or cancel the one that it names.

        Raises:
            InvalidRequest: it has no id of its own, so no answer could name it.
        """
        name, op = _name_of(document), document.pop("op", None)
        with self._lock:
            running = self._requests.get(name)
        if op == "cancel":
            if running is not None:
                running.cancel()
            return
        if running is not None:
            message = f"id: another request with {name!r} still runs"
            raise InvalidRequest(message, param="id", code="id_in_use")
        known = op if isinstance(op, str) and op in self._service.ops else _UNKNOWN
        try:
            self._start(name, known, document)
        except RequestError as error:
            self._refuse(error, known, name)

    def _start(self, name: Id, op: str, document: dict[str, Any]) -> None:
        if op == _UNKNOWN:
            known = ", ".join((*self._service.ops, "cancel"))
            raise InvalidRequest(f"op: not one of {known}", param="op", code="unknown_op")
        answer, envelope = self._service.ops[op], open_envelope(document)
        exchange = Exchange(self._send, partial(self._request_is_over, op), name, self._name)
        with self._lock:
            if len(self._requests) >= MAX_REQUESTS:
                raise _overloaded(f"{MAX_REQUESTS} requests")
            self._requests[name] = exchange
        run = partial(exchange.run, partial(answer, document), envelope)
        try:
            self._workers.start(run)
        except Overloaded:
            self._forget(exchange)
            raise

    def _request_is_over(self, op: str, exchange: Exchange) -> None:
        self._forget(exchange)
        self._service.answered(op, exchange.status)

    def _forget(self, exchange: Exchange) -> None:
        with self._lock:
            assert exchange.name is not None
            del self._requests[exchange.name]

    def _take_raw(self, body: bytes) -> None:
        exchange = Exchange(self._send, self._raw_is_over, None, self._name)
        with self._lock:
            waiting = len(self._raws)
            if waiting >= MAX_RAWS + MAX_REFUSED:
                message = f"{waiting} raw frames wait for their answers"
                raise BrokenFraming("too_many_raw_frames", message)
            self._raws.append((exchange, body if waiting < MAX_RAWS else None))
            begins, self._answers_raws = not self._answers_raws, True
        if begins:
            try:
                self._workers.start(self._answer_raws)
            except Overloaded:
                with self._lock:
                    self._raws.clear()
                    self._answers_raws = False
                raise

    def _answer_raws(self) -> None:
        """Answer raw frames in their order: only that says which answer is for which frame."""
        while (first := self._next_raw()) is not None:
            exchange, body = first
            exchange.run_raw(_refused if body is None else partial(self._service.raw, body))

    def _next_raw(self) -> tuple[Exchange, bytes | None] | None:
        with self._lock:
            self._answers_raws = bool(self._raws)
            return self._raws[0] if self._raws else None

    def _raw_is_over(self, exchange: Exchange) -> None:
        with self._lock:
            self._raws.popleft()
        self._service.answered("raw", exchange.status)

    def _refuse(
        self, error: RequestError, op: str, name: Id | None, about: int | None = None
    ) -> None:
        status, whole = failure(error, name, about)
        self._service.answered(op, status)
        self._send(whole)


def _refused(caller: Caller) -> bytes:
    raise _overloaded(f"{MAX_RAWS} raw frames")


def _overloaded(what: str) -> Overloaded:
    return Overloaded(f"this connection has {what} at work already", retry_after_s=1)


def _name_of(document: dict[str, Any]) -> Id:
    match document.pop("id", None):
        case bool():
            pass
        case int() as name if 0 <= name <= _MAX_ID:
            return name
        case str() as name if 1 <= len(name) <= _MAX_ID_LENGTH and not _SURROGATE.search(name):
            return name
    raise InvalidRequest(
        f"id must be a string of 1 to {_MAX_ID_LENGTH} characters or a whole number "
        f"from 0 to {_MAX_ID}",
        param="id",
        code="invalid_id",
    )
