"""A request at work, from its frame to its last answer."""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from gemma_server.api.errors import CLIENT_GONE, ErrorFacts, error_facts, facts, status_of
from gemma_server.api.generation import ClientGone
from gemma_server.api.job import Caller
from gemma_server.errors import NotReady, Overloaded, RequestError
from gemma_server.frames.codec import FAILED, FINISHED, RAW, BrokenFraming, frame
from gemma_server.frames.service import Part

logger = logging.getLogger(__name__)

Id = str | int

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class Exchange:
    """One request or raw frame. It ends with exactly one frame, behind a call of `over`."""

    def __init__(
        self, send: Callable[[bytes], None], over: Callable[["Exchange"], None], name: Id | None
    ) -> None:
        self.name = name  # the request's id; a raw frame has none
        self.status = 200  # HTTP's, once it is over
        self._send, self._over = send, over
        self._lock = threading.Lock()
        self._cancelled = False
        self._cancel_job: Callable[[], None] = lambda: None

    def cancel(self) -> None:
        """The client gives up: the slot is free at once. Any thread may call this."""
        with self._lock:
            self._cancelled = True
            cancel_job = self._cancel_job
        cancel_job()

    def run(self, answer: Callable[[Caller], Iterator[Part]], deadline: float | None) -> None:
        """Send the answer to a request, piece by piece."""
        try:
            self._check()
            for kind, document in answer(self._caller(deadline)):
                whole = json_frame(kind, self.name, document)
                if kind == FINISHED:
                    self._check()
                    break
                self._send(whole)
            else:
                raise AssertionError("the answer has no end")
        except Exception as error:
            self.status, whole = failure(error, self.name)
        self._over(self)
        self._send(whole)

    def run_raw(self, answer: Callable[[Caller], bytes]) -> None:
        """Send the answer to a raw frame."""
        try:
            self._check()
            whole = frame(RAW, answer(self._caller(None)))
        except Exception as error:
            self.status, whole = failure(error, None, about=RAW)
        self._over(self)
        self._send(whole)

    def _check(self) -> None:
        if self._cancelled:
            raise ClientGone

    def _caller(self, deadline: float | None) -> Caller:
        return Caller(lambda: self._cancelled, deadline, on_job=self._began)

    def _began(self, cancel_job: Callable[[], None]) -> None:
        """The job is queued: from now on it is what there is to cancel."""
        with self._lock:
            self._cancel_job = cancel_job
            cancelled = self._cancelled
        if cancelled:
            cancel_job()


class Failure(NamedTuple):
    """What a client is told of an error."""

    status: int  # HTTP's
    frame: bytes


def failure(error: Exception, name: Id | None, about: int | None = None) -> Failure:
    """Tell of an error; without an id, of what type the frame at fault was."""
    status, found = _told(error)
    document: dict[str, Any] = {"status": status, "error": found}
    if about is not None:
        document["about"] = about
    if isinstance(error, Overloaded | NotReady):
        document["retry_after_s"] = error.retry_after_s
    return Failure(status, json_frame(FAILED, name, document))


def json_frame(kind: int, name: Id | None, document: Mapping[str, Any]) -> bytes:
    """A frame of JSON, with the request's id if it has one."""
    tagged = document if name is None else {"id": name, **document}
    return frame(kind, _encode(tagged).encode("utf-8", errors="replace"))


def _told(error: Exception) -> tuple[int, ErrorFacts]:
    request_id = os.urandom(16).hex()
    match error:
        case RequestError():
            return status_of(error), facts(error, request_id)
        case ClientGone():
            message = "the request was cancelled"
            return CLIENT_GONE, error_facts("client_closed", message, "cancelled", request_id)
        case BrokenFraming():
            kind = "invalid_request_error"
            return 400, error_facts(kind, str(error), error.code, request_id)
    logger.error("request %s failed", request_id, exc_info=error)
    message = "an error inside the server; its log has the details under this request id"
    return 500, error_facts("server_error", message, "internal", request_id)
