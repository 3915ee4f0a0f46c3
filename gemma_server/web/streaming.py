"""A job's answer as a stream of events or lines."""

import errno
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from typing import Any

from flask import Response, g, json, stream_with_context

from gemma_server.api.errors import error_body
from gemma_server.api.job import Arrival
from gemma_server.api.operation import EVENTS, Document, Operation, Stream
from gemma_server.errors import Disconnected, RequestError

_DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"  # a comment: no client takes it for text


class BrokenBody(BrokenPipeError):
    """Ends a stream in the middle: the connection closes without the body's last chunk.

    gunicorn takes it for a client that disconnected, and logs nothing.
    """

    def __init__(self) -> None:
        super().__init__(errno.EPIPE, "the stream ends early")


def stream(answer: Stream, operation: Operation[Any], held: ExitStack) -> Response:
    """The streamed answer; `held` is closed after it.

    Waits for the first piece: an error before it still gets an HTTP status of its own.
    """
    assert operation.stream is not None
    job, content_type = answer.job, operation.stream.content_type
    pieces = job.pieces()
    first = [arrival] if (arrival := next(pieces, None)) is not None else []
    body = _body(answer, operation, chain(first, pieces))
    response = Response(
        stream_with_context(body),
        mimetype=content_type,
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )
    response.call_on_close(held.pop_all().close)  # also when no part was ever asked for
    return response


def _body(
    answer: Stream, operation: Operation[Any], arrivals: Iterator[Arrival]
) -> Iterator[bytes]:
    """The stream's parts; a failure sends its reason and breaks the body off."""
    assert operation.stream is not None
    write = _event if operation.stream.content_type == EVENTS else _line
    try:
        for index, piece in arrivals:
            if not piece.is_keepalive:
                yield b"".join(map(write, answer.form.parts(index, piece)))
            elif (part := answer.form.keepalive()) is not None:
                yield write(part)
            else:
                yield _PING
    except Disconnected:
        raise BrokenBody from None
    except RequestError as error:
        yield write(operation.error_form.write(error_body(error, g.request_id)))
        raise BrokenBody from error
    end = b"".join(map(write, answer.form.end(answer.job)))
    yield end + _DONE if write is _event and operation.stream.says_done else end


def _event(document: Document) -> bytes:
    """A server-sent event: one line of JSON, and a blank line."""
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def _line(document: Document) -> bytes:
    """One JSON object, and the end of its line."""
    return json.dumps(document).encode() + b"\n"
