"""A request in flight, from its frame to its last answer."""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

from gemma_server.api.caller import Caller, Running
from gemma_server.api.document import write
from gemma_server.api.errors import CLIENT_CLOSED, ErrorBody, error_body, make_error_body, status_of
from gemma_server.errors import Disconnected, NotReady, Overloaded, RequestError
from gemma_server.frames.codec import FAILED, FINISHED, RAW, BrokenFraming, frame
from gemma_server.frames.envelope import Envelope
from gemma_server.frames.service import Part

logger = logging.getLogger(__name__)

Id = str | int

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class Exchange:
    """One request or raw frame. It ends with exactly one frame, sent after a call of `over`."""

    def __init__(
        self,
        send: Callable[[bytes], None],
        over: Callable[["Exchange"], None],
        name: Id | None,
        connection: str,
    ) -> None:
        self.name = name  # the request's id; a raw frame has none
        self.status = 200  # HTTP's, once it is over
        self._send, self._over, self._connection = send, over, connection
        self._lock = threading.Lock()
        self._cancelled = False
        self._job: Running | None = None
        self._request_id = _new_id()

    def cancel(self) -> None:
        """End it early; the slot is free at once. Any thread may call this."""
        with self._lock:
            self._cancelled = True
            job = self._job
        if job is not None:
            job.cancel()

    def run(self, answer: Callable[[Caller], Iterator[Part]], envelope: Envelope) -> None:
        """Send the answer to a request, piece by piece."""
        try:
            self._check()
            with ExitStack() as held:
                for kind, document in answer(self._caller(held, envelope)):
                    whole = json_frame(kind, self.name, document)
                    if kind == FINISHED:
                        self._check()
                        break
                    self._send(whole)
                else:
                    raise AssertionError("the answer has no end")
        except Exception as error:
            self.status, whole = failure(error, self.name, request_id=self._request_id)
        self._over(self)
        self._send(whole)

    def run_raw(self, answer: Callable[[Caller], bytes]) -> None:
        """Send the answer to a raw frame."""
        try:
            self._check()
            with ExitStack() as held:
                whole = frame(RAW, answer(self._caller(held, Envelope())))
        except Exception as error:
            self.status, whole = failure(error, None, about=RAW, request_id=self._request_id)
        self._over(self)
        self._send(whole)

    def _check(self) -> None:
        if self._cancelled:
            raise Disconnected

    def _caller(self, held: ExitStack, envelope: Envelope) -> Caller:
        return Caller(
            self._request_id,
            held,
            lambda: self._cancelled,
            envelope.deadline,
            envelope.priority,
            on_job=self._began,
            connection=self._connection,
            affinity=envelope.affinity,
            is_operator=True,  # no web page and no other machine can use a Unix socket
        )

    def _began(self, job: Running) -> None:
        """The job is queued: from now on `cancel` cancels it."""
        with self._lock:
            self._job = job
            cancelled = self._cancelled
        if cancelled:
            job.cancel()


class Failure(NamedTuple):
    """What a client is told of an error."""

    status: int  # HTTP's
    frame: bytes


def failure(
    error: Exception, name: Id | None, about: int | None = None, request_id: str | None = None
) -> Failure:
    """The frame for an error; without an id, it names the type of the frame at fault."""
    status, found = _told(error, request_id or _new_id())
    document: dict[str, Any] = {"status": status, "error": found}
    if about is not None:
        document["about"] = about
    if isinstance(error, Overloaded | NotReady):
        document["retry_after_s"] = error.retry_after_s
    return Failure(status, json_frame(FAILED, name, document))


def json_frame(kind: int, name: Id | None, document: Mapping[str, Any]) -> bytes:
    """A frame of JSON, with the request's id if it has one."""
    tagged = document if name is None else {"id": name, **document}
    return frame(kind, write(tagged, _encode).encode("utf-8", errors="replace"))


def _new_id() -> str:
    return os.urandom(16).hex()


def _told(error: Exception, request_id: str) -> tuple[int, ErrorBody]:
    match error:
        case RequestError():
            return status_of(error), error_body(error, request_id)
        case Disconnected():
            message = "the request was cancelled"
            return CLIENT_CLOSED, make_error_body("client_closed", message, "cancelled", request_id)
        case BrokenFraming():
            kind = "invalid_request_error"
            return 400, make_error_body(kind, str(error), error.code, request_id)
    logger.error("request %s failed", request_id, exc_info=error)
    message = "an error inside the server; its log has the details under this request id"
    return 500, make_error_body("server_error", message, "internal", request_id)
