"""/openapi.json: every route, described by the types that its bodies and answers have."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from flask import Blueprint, render_template_string
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from gemma_server import __version__
from gemma_server.api import schemas as schema
from gemma_server.api.native import prompt
from gemma_server.api.ollama import schema as ollama_schema
from gemma_server.api.openai import schema as openai_schema
from gemma_server.api.openai import tokens
from gemma_server.serving.model import Readiness
from gemma_server.api import status as ops
from gemma_server.api.native import handlers as native
from gemma_server.api.ollama import answers as ollama_answers
from gemma_server.api.ollama import handlers as ollama
from gemma_server.api.openai import answers as openai_answers
from gemma_server.api.openai import handlers as openai
from gemma_server.web.errors import ErrorBody, OllamaErrorBody

_JSON, _EVENTS, _LINES = "application/json", "text/event-stream", "application/x-ndjson"
_REF = "#/components/schemas/{model}"


@dataclass(frozen=True)
class Operation:
    """A route, and the types of what goes in and comes out."""

    method: Literal["get", "post"]
    path: str
    summary: str
    answer: Any = None  # the type of the JSON; None: text
    body: type[BaseModel] | None = None
    stream: tuple[str, Any] | None = None  # the content type, and the type of each part's JSON
    text: tuple[str, ...] = ()  # content types
    query: tuple[tuple[str, tuple[str, ...]], ...] = ()  # parameters, each with its values
    loading: Any = None  # the type of what is no error, but the answer while the model loads

    @property
    def error(self) -> Any:
        """The type of what comes instead of an answer."""
        return OllamaErrorBody if self.path.startswith("/api/") else ErrorBody


_NATIVE = (
    Operation(
        "post",
        "/prompt",
        "Continue a text, or several",
        prompt.PromptAnswer,
        schema.PromptBody,
        (_EVENTS, prompt.PromptPart | prompt.PromptAnswer),
    ),
    Operation(
        "post",
        "/echo",
        "Send back what came: the price of the hop",
        native.EchoAnswer,
        schema.EchoBody,
        query=(("through", native.DEPTHS),),
    ),
)
_OPENAI = (
    Operation(
        "post",
        "/v1/chat/completions",
        "Answer a chat",
        openai_answers.ChatCompletion,
        openai_schema.ChatCompletionBody,
        (_EVENTS, openai_answers.AnyChatChunk),
    ),
    Operation(
        "post",
        "/v1/completions",
        "Continue texts",
        openai_answers.TextCompletion,
        openai_schema.CompletionBody,
        (_EVENTS, openai_answers.AnyTextChunk),
    ),
    Operation("get", "/v1/models", "List the model", openai.ModelCards),
    Operation("get", "/v1/models/{name}", "The model, if it has this name", openai.ModelCard),
    Operation(
        "post",
        "/tokenize",
        "A text's token ids",
        tokens.TokenIds,
        tokens.TokenizeBody,
    ),
    Operation(
        "post",
        "/detokenize",
        "The text of token ids",
        openai.TokensText,
        openai_schema.DetokenizeBody,
    ),
)
_OLLAMA = (
    Operation(
        "post",
        "/api/generate",
        "Answer a prompt",
        ollama_answers.Generated,
        ollama_schema.GenerateBody,
        (_LINES, ollama_answers.MoreText | ollama_answers.Generated),
    ),
    Operation(
        "post",
        "/api/chat",
        "Answer a chat",
        ollama_answers.Chatted,
        ollama_schema.ChatBody,
        (_LINES, ollama_answers.MoreChat | ollama_answers.Chatted),
    ),
    Operation(
        "post",
        "/api/show",
        "What the model is",
        ollama.Description,
        ollama_schema.ShowBody,
    ),
    Operation("get", "/api/tags", "List the model", ollama.Tags),
    Operation("get", "/api/ps", "List the model in memory", ollama.RunningTags),
    Operation("get", "/api/version", "The Ollama whose routes these are", ollama.Version),
    Operation("get", "/", "Whether a server is there", text=("text/plain", "text/html")),
)
_OPERATORS = (
    Operation("get", "/healthz", "Whether the process answers", ops.Health),
    Operation("get", "/readyz", "Whether it can generate", Readiness, loading=Readiness),
    Operation("get", "/metrics", "Figures for Prometheus", text=("text/plain",)),
    Operation("get", "/openapi.json", "This document", dict[str, Any]),
    Operation("get", "/docs", "This document as a page", text=("text/html",)),
)
OPERATIONS = _NATIVE + _OPENAI + _OLLAMA + _OPERATORS

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>gemma-server: routes</title>
<body style="font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto">
<h1>Routes</h1>
<p>From <a href="/openapi.json">/openapi.json</a>. What all of it means: docs/api.md of the
project.</p>
{% macro fields(schema) %}
<table cellpadding="4">
{% for name, field in (schema.properties or {}).items() %}<tr><td><code>{{ name }}</code></td>
<td>{{ "needed" if name in schema.required else field.default | tojson
       if field.default is defined else "" }}</td></tr>
{% endfor %}</table>
{% endmacro %}
{% for operation, bodies, answers in routes %}
<h2><code>{{ operation.method | upper }} {{ operation.path }}</code></h2>
<p>{{ operation.summary }}{% if operation.stream %}; with <code>stream</code> as
{{ operation.stream[0] }}{% endif %}.</p>
{% for body in bodies %}{{ fields(body) }}{% endfor %}
{% for answer in answers %}<p>Answers {% for name in answer.properties %}<code>{{ name }}</code>
{% endfor %}</p>
{% endfor %}{% endfor %}
"""


def blueprint() -> Blueprint:
    """The document, and a page to read it."""
    routes = Blueprint("openapi", __name__)

    @routes.get("/openapi.json")
    def openapi() -> dict[str, Any]:
        return document()

    @routes.get("/docs")
    def page() -> str:
        return render_template_string(_PAGE, routes=[_fields(each) for each in OPERATIONS])

    return routes


@cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    types = [
        ((operation, role), mode, TypeAdapter(kind))
        for operation in OPERATIONS
        for role, mode, kind in _types(operation)
    ]
    found, definitions = TypeAdapter.json_schemas(types, ref_template=_REF)
    schemas = {key: schema for (key, _), schema in found.items()}
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        own = {role: schemas[operation, role] for role, _, _ in _types(operation)}
        paths[operation.path] = {operation.method: _describe(operation, own)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "gemma-server", "version": __version__},
        "paths": paths,
        "components": {"schemas": definitions["$defs"]},
    }


def _types(operation: Operation) -> list[tuple[str, JsonSchemaMode, Any]]:
    """The operation's types by their role in it."""
    part = None if operation.stream is None else operation.stream[1] | operation.error
    roles: tuple[tuple[str, JsonSchemaMode, Any], ...] = (
        ("body", "validation", operation.body),
        ("answer", "serialization", operation.answer),
        ("part", "serialization", part),
        ("error", "serialization", operation.error),
        ("loading", "serialization", operation.loading),
    )
    return [(role, mode, kind) for role, mode, kind in roles if kind is not None]


def _describe(operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    """One operation, with the schemas of its types by role."""
    content: dict[str, Any] = {kind: {"schema": {"type": "string"}} for kind in operation.text}
    if operation.answer is not None:
        content[_JSON] = {"schema": schemas["answer"]}
    if operation.stream is not None:
        kind, _ = operation.stream
        content[kind] = {"x-itemSchema": schemas["part"]}  # without the x- in OpenAPI 3.2
    responses = {
        "200": {"description": "the answer", "content": content},
        "default": _json("an error", schemas["error"]),
    }
    if operation.loading is not None:
        responses["503"] = _json("not yet, or no more", schemas["loading"])
    described: dict[str, Any] = {"summary": operation.summary, "responses": responses}
    if operation.body is not None:
        described["requestBody"] = {"required": True, **_json("what is asked", schemas["body"])}
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", operation.path)
    ]
    for name, values in operation.query:
        parameters.append({"name": name, "in": "query", "schema": {"enum": list(values)}})
    return {**described, "parameters": parameters}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {_JSON: {"schema": schema}}}


def _fields(operation: Operation) -> tuple[Operation, list[Any], list[Any]]:
    """An operation for the page, with the objects that it takes and answers."""
    described = document()["paths"][operation.path][operation.method]
    body = described.get("requestBody", {"content": {}})["content"]
    answer = described["responses"]["200"]["content"]
    return operation, _objects(body.get(_JSON)), _objects(answer.get(_JSON))


def _objects(content: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The schema of a JSON object, or those of which it is one."""
    if content is None:
        return []
    schemas = document()["components"]["schemas"]
    options = content["schema"].get("anyOf", [content["schema"]])
    return [schemas[option["$ref"].rpartition("/")[2]] for option in options if "$ref" in option]
