"""Request bodies: read within a limit, parsed as JSON, checked by a schema."""

import json
from typing import Any, TypeVar

from flask import request
from pydantic import BaseModel, ValidationError
from werkzeug.exceptions import UnsupportedMediaType

from gemma_server.errors import InvalidRequest

MAX_BODY_BYTES = 1 << 20

Schema = TypeVar("Schema", bound=BaseModel)


def read_body(schema: type[Schema]) -> Schema:
    """The request's JSON body as `schema`.

    Raises:
        InvalidRequest: not JSON (`invalid_json`), a field that has no place here
            (`unknown_field`), or a value that cannot be (`invalid_value`).
        UnsupportedMediaType: another content type than application/json.
    """
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("send the body as Content-Type: application/json")
    document = _parse(request.get_data(cache=False))
    try:
        return schema.model_validate(document, strict=True)
    except ValidationError as error:
        raise _explain(error) from None


def _parse(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
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
    field = str(problem["loc"][0])[:100]
    param = field + "".join(f"[{part}]" for part in problem["loc"] if isinstance(part, int))
    match problem["type"]:
        case "extra_forbidden":
            return InvalidRequest(f"unknown field {param}", param=param, code="unknown_field")
        case "missing":
            return InvalidRequest(f"the field {param} is missing", param=param)
    return InvalidRequest(f"{param}: {problem['msg']}", param=param)
