"""Request bodies: read up to a limit, parsed as JSON, checked against a schema."""

import contextlib
from typing import Any

from flask import g, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    RequestEntityTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)

from gemma_server.api.document import MAX_BODY_BYTES, Schema, read
from gemma_server.api.timing import timed
from gemma_server.errors import Disconnected

_UNSAID = ("", "application/x-www-form-urlencoded")
_PLAIN = "identity"
# Where the JSON ends in front of the tensors, by Triton's binary tensor data extension.
_TENSORS = "Inference-Header-Content-Length"
_DISCARD_S = 0.2


def read_body(schema: type[Schema], *, needed: bool = True) -> Schema:
    """The request's JSON body as `schema`; where none is needed, nothing is an empty object.

    Raises:
        Disconnected: the connection broke.
        InvalidRequest: not a JSON object (`invalid_json`), an unknown field (`unknown_field`), or
            a value that is not valid (`invalid_value`).
        Overloaded: too many large bodies wait to be parsed.
        HTTPException: a content type other than application/json, a compressed body, one with
            binary tensors, or one that is too large or cannot be read.
    """
    if _TENSORS in request.headers:
        raise UnsupportedMediaType(
            f"binary tensors ({_TENSORS}) are not supported: send their data as JSON, which "
            "tritonclient does with binary_data=False"
        )
    if not _is_json():
        raise UnsupportedMediaType("send the body as Content-Type: application/json")
    encoding = request.headers.get("Content-Encoding", _PLAIN)
    if encoding.strip().lower() != _PLAIN:
        raise UnsupportedMediaType(f"send the body without Content-Encoding: {encoding[:40]}")
    with timed(g.stages, "parse"):
        body = _read_bytes()
        return read(schema, body if body or needed else b"{}")


def discard_body() -> None:
    """Read and drop a body that nothing has read, so that the connection can be used again.

    A body that is too large, or has not arrived, is left and the server closes the connection: a
    request that was refused must not hold a thread.
    """
    connection: Any = request.environ.get("gunicorn.socket")
    if hasattr(connection, "read_within"):  # TLS and test clients have other sockets, or none
        connection.read_within(_DISCARD_S)
    with contextlib.suppress(HTTPException, Disconnected):
        _read_bytes()


def _is_json() -> bool:
    """By its content type. Also if curl's -d or a bare client sent no better one.

    A page of another site could send such a body without CORS preflight: `Origins` refuses it.
    """
    return request.mimetype == "application/json" or request.mimetype in _UNSAID


def _read_bytes() -> bytes:
    """The whole body; one byte beyond the limit is enough to refuse it, chunked or not."""
    g.body_read = True
    blocks: list[bytes] = []
    left = MAX_BODY_BYTES + 1
    try:
        if (request.content_length or 0) > MAX_BODY_BYTES:
            left = 0
        # Not through `request.stream`: gunicorn's input itself ends where the body does.
        body = request.environ["wsgi.input"]
        while left and (block := body.read(left)):
            blocks.append(block)
            left -= len(block)
    except BlockingIOError:  # the socket's time limit, on a blocking socket
        raise RequestTimeout("the body did not arrive in time") from None
    except OSError:
        raise Disconnected from None
    except ParseException as error:  # gunicorn parses chunks only while they are read
        raise BadRequest(f"the body is not well-formed HTTP: {error}"[:300]) from None
    if left == 0:
        raise RequestEntityTooLarge(f"the body has more than {MAX_BODY_BYTES} bytes")
    return b"".join(blocks)
