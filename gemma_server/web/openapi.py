"""Operations as an OpenAPI document, made from the types of their bodies and answers."""

import re
from functools import cache
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from gemma_server import __version__
from gemma_server.api.operation import Operation

_JSON = "application/json"
_REF = "#/components/schemas/{model}"


@cache
def document(operations: tuple[Operation[Any], ...]) -> dict[str, Any]:
    """OpenAPI 3.1 of those operations that have a path."""
    operations = tuple(operation for operation in operations if operation.path is not None)
    types = [
        ((operation, role), mode, TypeAdapter(kind))
        for operation in operations
        for role, mode, kind in _types(operation)
    ]
    found, definitions = TypeAdapter.json_schemas(types, ref_template=_REF)
    schemas = {key: schema for (key, _), schema in found.items()}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        own = {role: schemas[operation, role] for role, _, _ in _types(operation)}
        paths[str(operation.path)] = {operation.method.lower(): _describe(operation, own)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "gemma-server", "version": __version__},
        "paths": paths,
        "components": {"schemas": definitions["$defs"]},
    }


def _types(operation: Operation[Any]) -> list[tuple[str, JsonSchemaMode, Any]]:
    """The operation's types by their role in it."""
    error = operation.error_form.type
    part = None if operation.stream is None else operation.stream.part | error
    roles: tuple[tuple[str, JsonSchemaMode, Any], ...] = (
        ("body", "validation", operation.body),
        ("answer", "serialization", operation.answer),
        ("part", "serialization", part),
        ("error", "serialization", error),
        ("unready", "serialization", operation.unready),
    )
    return [(role, mode, kind) for role, mode, kind in roles if kind is not None]


def _describe(operation: Operation[Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """One operation, with the schemas of its types by role."""
    content: dict[str, Any] = {kind: {"schema": {"type": "string"}} for kind in operation.text}
    if operation.answer is not None:
        content[_JSON] = {"schema": schemas["answer"]}
    if operation.stream is not None:
        # OpenAPI 3.2 has this without the x-.
        content[operation.stream.content_type] = {"x-itemSchema": schemas["part"]}
    responses = {
        "200": {"description": "the answer", "content": content},
        "default": _json("an error", schemas["error"]),
    }
    if operation.unready is not None:
        responses["503"] = _json("not yet, or no more", schemas["unready"])
    described: dict[str, Any] = {"summary": operation.summary, "responses": responses}
    if operation.body is not None:
        asked = _json("what is asked", schemas["body"])
        described["requestBody"] = {"required": operation.needs_body, **asked}
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", str(operation.path))
    ]
    for name, values in operation.query:
        parameters.append({"name": name, "in": "query", "schema": {"enum": list(values)}})
    return {**described, "parameters": parameters}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {_JSON: {"schema": schema}}}


def objects_of(
    operations: tuple[Operation[Any], ...], operation: Operation[Any]
) -> tuple[list[Any], list[Any]]:
    """The schemas of the JSON objects that an operation takes and returns."""
    found = document(operations)
    described = found["paths"][operation.path][operation.method.lower()]
    body = described.get("requestBody", {"content": {}})["content"]
    answer = described["responses"]["200"]["content"]
    schemas = found["components"]["schemas"]
    return _objects(schemas, body.get(_JSON)), _objects(schemas, answer.get(_JSON))


def _objects(schemas: dict[str, Any], content: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The schema of a JSON object, or all alternatives of a union."""
    if content is None:
        return []
    options = content["schema"].get("anyOf", [content["schema"]])
    return [schemas[option["$ref"].rpartition("/")[2]] for option in options if "$ref" in option]
