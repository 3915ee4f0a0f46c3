"""JSON documents: those from clients parsed and checked against a schema, and answers written."""

import json
import math
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from gemma_server.api import heavy
from gemma_server.errors import InvalidRequest

MAX_BODY_BYTES = 1 << 20
_MANY_FIELDS = 64  # more than any schema has
_MANY_ITEMS = 16  # of a list
_TYPE_NAMES = frozenset({"str", "int", "float", "bool", "NamedTool"})

Schema = TypeVar("Schema", bound=BaseModel)


def read(schema: type[Schema], body: bytes) -> Schema:
    """A JSON body as `schema`.

    Raises:
        InvalidRequest: as `parse` and `check`.
        Overloaded: too many large bodies wait to be parsed.
    """
    return heavy.run(len(body), lambda: check(schema, parse(body)))


def write(document: Any, encode: Callable[[Any], str]) -> str:
    """An answer as JSON, by an encoder that writes no spaces.

    An encoder holds Python's lock until it is done, and a thousand embeddings take it a second. So
    an object's long lists of lists and objects are written item by item. (Numbers are quick, and a
    call for each is not.)
    """
    if not isinstance(document, dict) or not any(map(_is_long, document.values())):
        return encode(document)
    fields = (
        f"{encode(name)}:[{','.join(map(encode, value))}]"
        if _is_long(value)
        else f"{encode(name)}:{encode(value)}"
        for name, value in document.items()
    )
    return "{" + ",".join(fields) + "}"


def _is_long(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) > _MANY_ITEMS and isinstance(value[0], list | dict)
    )


def parse(body: bytes, what: str = "the body") -> dict[str, Any]:
    """Parse a body as a JSON object.

    Raises:
        InvalidRequest: it is not one (`invalid_json`).
    """
    try:
        document = _DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _invalid_json(what, f"byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise _invalid_json(what, "it is nested too deeply") from None
    except ValueError as error:
        raise _invalid_json(what, str(error)) from None
    if not isinstance(document, dict):
        raise _invalid_json(what, "it must be an object")
    return document


def check(schema: type[Schema], document: dict[str, Any], *, strict: bool = True) -> Schema:
    """The document as `schema`; numbers may be strings of digits if it is not `strict`.

    Raises:
        InvalidRequest: a field is unknown (`unknown_field`), or a value is not valid
            (`invalid_value`).
    """
    if schema.model_config.get("extra") == "forbid" and len(document) > _MANY_FIELDS:
        unknown = next(name for name in document if name not in schema.model_fields)
        raise _unknown(unknown[:100])  # pydantic would collect all of them first
    try:
        return schema.model_validate(document, strict=strict)
    except ValidationError as error:
        raise _explain(error) from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:40]} is beyond the range of numbers")
    return number


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def _invalid_json(what: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{what} is not valid JSON: {why}", code="invalid_json")


def _explain(error: ValidationError) -> InvalidRequest:
    """The most telling problem, with the field's name and the limit."""
    # A field that may be one of several types reports a problem for each. Report the one that
    # found the right type and got deepest into the value.
    problem = min(
        error.errors(include_url=False, include_context=False),
        key=lambda item: (item["type"].endswith("_type"), -len(item["loc"])),
    )
    if not problem["loc"]:  # a field name that is not valid text has no path
        return InvalidRequest(f"the body: {problem['msg']}")
    param = _path(problem["loc"])
    match problem["type"]:
        case "extra_forbidden":
            return _unknown(param)
        case "missing":
            return InvalidRequest(f"the field {param} is missing", param=param)
    return InvalidRequest(f"{param}: {problem['msg']}", param=param)


def _unknown(field: str) -> InvalidRequest:
    return InvalidRequest(f"unknown field {field}", param=field, code="unknown_field")


def _path(loc: tuple[int | str, ...]) -> str:
    """`("messages", 2, "role")` -> `messages[2].role`. pydantic also names the tried types of a
    union; those are left out."""
    path = str(loc[0])[:100]
    for part in loc[1:]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in _TYPE_NAMES:
            path += f".{part[:100]}"
    return path
