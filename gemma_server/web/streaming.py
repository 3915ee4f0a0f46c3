"""A job's answer as a stream, in whatever form a dialect writes it."""

import errno
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Protocol

from flask import Response, json, stream_with_context

from gemma_server.api.generation import ClientGone, Piece
from gemma_server.api.job import Arrival, Job
from gemma_server.errors import RequestError

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


class BrokenBody(BrokenPipeError):
    """Ends a stream in the middle: the connection closes without the body's last chunk.

    To the server it looks like a client that went away, which is no news for its log.
    """

    def __init__(self) -> None:
        super().__init__(errno.EPIPE, "the stream ends early")


class Writer(Protocol):
    """How a dialect puts an answer on the wire, part by part."""

    mimetype: str

    def piece(self, index: int, piece: Piece) -> bytes:
        """More text of one generation."""
        ...

    def ping(self) -> bytes:
        """A sign of life that no client takes for text."""
        ...

    def end(self, job: Job) -> Iterator[bytes]:
        """What comes behind the whole text of all generations."""
        ...

    def failure(self, error: RequestError) -> bytes:
        """Why the stream ends early."""
        ...


def stream(job: Job, writer: Writer) -> Response:
    """The streamed answer. The first piece is awaited: what fails before it has a status."""
    pieces = job.pieces()
    first = [arrival] if (arrival := next(pieces, None)) is not None else []
    job.timings()
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    body = stream_with_context(_body(job, chain(first, pieces), writer))
    response = Response(body, mimetype=writer.mimetype, headers=headers)
    response.call_on_close(job.cancel)  # also when no part was ever asked for
    return response


def event(document: Mapping[str, object]) -> bytes:
    """A server-sent event: one line of JSON, and a blank line."""
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def _body(job: Job, arrivals: Iterator[Arrival], writer: Writer) -> Iterator[bytes]:
    """The stream's parts; after a failure its reason, and then a broken body."""
    try:
        for index, piece in arrivals:
            yield writer.ping() if piece.is_beat else writer.piece(index, piece)
    except ClientGone:
        raise BrokenBody from None
    except RequestError as error:
        yield writer.failure(error)
        raise BrokenBody from error
    yield from writer.end(job)
