"""Request bodies: read within a limit, parsed as JSON, checked by a schema."""

import contextlib
import json
import math
from typing import Any, TypeVar

from flask import g, request
from gunicorn.http.errors import ParseException
from pydantic import BaseModel, ValidationError
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    RequestEntityTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)

from gemma_server.errors import InvalidRequest
from gemma_server.generation import ClientGone
from gemma_server.served import LoadedModel, ServedModel
from gemma_server.web.schema import ModelBody
from gemma_server.web.timing import timed

MAX_BODY_BYTES = 1 << 20
_TYPE_NAMES = frozenset({"str", "int", "float", "bool"})

Schema = TypeVar("Schema", bound=BaseModel)
ForModel = TypeVar("ForModel", bound=ModelBody)


def read_body(schema: type[Schema]) -> Schema:
    """The request's JSON body as `schema`.

    Raises:
        ClientGone: the connection broke.
        InvalidRequest: not JSON (`invalid_json`), a field that has no place here
            (`unknown_field`), or a value that cannot be (`invalid_value`).
        HTTPException: another content type than application/json, or a body that is too large
            or cannot be read.
    """
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("send the body as Content-Type: application/json")
    with timed("parse"):
        document = _parse(_read_bytes())
        try:
            return schema.model_validate(document, strict=True)
        except ValidationError as error:
            raise _explain(error) from None


def read_for(model: ServedModel, schema: type[ForModel]) -> tuple[ForModel, LoadedModel]:
    """The body as `read_body` has it, and the model that it is for.

    Raises:
        NotReady: the model takes no requests; the body is not looked at.
        ModelNotFound: it is for another one.
    """
    model.require_ready()
    body = read_body(schema)
    return body, model.find(body.model)


def discard_body() -> None:
    """Read away a body that nobody asked for, so that the connection can be used again.

    One that is too large or cannot be read stays where it is: then the server closes.
    """
    with contextlib.suppress(HTTPException, ClientGone):
        _read_bytes()


def _read_bytes() -> bytes:
    """The whole body; one byte beyond the limit is enough to refuse it, chunked or not."""
    g.body_read = True
    blocks: list[bytes] = []
    left = MAX_BODY_BYTES + 1
    try:
        if (request.content_length or 0) > MAX_BODY_BYTES:
            left = 0
        # Not through `request.stream`: gunicorn's input ends with the body by itself.
        body = request.environ["wsgi.input"]
        while left and (block := body.read(left)):
            blocks.append(block)
            left -= len(block)
    except BlockingIOError:  # the socket's time limit, on a blocking socket
        raise RequestTimeout("the body did not arrive in time") from None
    except OSError:
        raise ClientGone from None
    except ParseException as error:  # gunicorn reads chunks only now
        raise BadRequest(f"the body is not well-formed HTTP: {error}"[:300]) from None
    if left == 0:
        raise RequestEntityTooLarge(f"the body has more than {MAX_BODY_BYTES} bytes")
    return b"".join(blocks)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        document = _DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _invalid_json(f"byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise _invalid_json("it is nested too deeply") from None
    except ValueError as error:
        raise _invalid_json(str(error)) from None
    if not isinstance(document, dict):
        raise _invalid_json("it must be an object")
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:40]} is beyond the range of numbers")
    return number


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def _invalid_json(why: str) -> InvalidRequest:
    return InvalidRequest(f"the body is not valid JSON: {why}", code="invalid_json")


def _explain(error: ValidationError) -> InvalidRequest:
    """The most telling problem, with the field's name and the limit."""
    # A field that may be one of several types reports a problem for each: the one that found the
    # right type, and got deepest into the value, is the one to tell.
    problem = min(
        error.errors(include_url=False, include_context=False),
        key=lambda item: (item["type"].endswith("_type"), -len(item["loc"])),
    )
    if not problem["loc"]:  # a field's name that is no valid text has no place to point at
        return InvalidRequest(f"the body: {problem['msg']}")
    param = _path(problem["loc"])
    match problem["type"]:
        case "extra_forbidden":
            return InvalidRequest(f"unknown field {param}", param=param, code="unknown_field")
        case "missing":
            return InvalidRequest(f"the field {param} is missing", param=param)
    return InvalidRequest(f"{param}: {problem['msg']}", param=param)


def _path(loc: tuple[int | str, ...]) -> str:
    """`("messages", 2, "role")` -> `messages[2].role`. pydantic names the tried types of a union
    in between; these are no identifiers of ours."""
    path = str(loc[0])[:100]
    for part in loc[1:]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in _TYPE_NAMES:
            path += f".{part[:100]}"
    return path
