"""/openapi.json: every route that takes a body, described by the schema that checks it."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from flask import Blueprint, render_template_string
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gemma_server import __version__
from gemma_server.web import ollama_schema, openai_schema, schema

_JSON, _EVENTS, _LINES = "application/json", "text/event-stream", "application/x-ndjson"


@dataclass(frozen=True)
class Operation:
    """A route that takes a body."""

    path: str
    body: type[BaseModel]
    summary: str
    streams_as: str | None = None


OPERATIONS = (
    Operation("/prompt", schema.PromptBody, "Continue a text, or several", _EVENTS),
    Operation("/echo", schema.EchoBody, "Send back what came: the price of the hop"),
    Operation("/v1/chat/completions", openai_schema.ChatBody, "Answer a chat", _EVENTS),
    Operation("/v1/completions", openai_schema.CompletionBody, "Continue texts", _EVENTS),
    Operation("/tokenize", openai_schema.TokenizeBody, "A text's token ids"),
    Operation("/detokenize", openai_schema.DetokenizeBody, "The text of token ids"),
    Operation("/api/generate", ollama_schema.GenerateBody, "Answer a prompt", _LINES),
    Operation("/api/chat", ollama_schema.ChatBody, "Answer a chat", _LINES),
    Operation("/api/show", ollama_schema.ShowBody, "What the model is"),
)

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>gemma-server: routes</title>
<body style="font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto">
<h1>Routes</h1>
<p>From <a href="/openapi.json">/openapi.json</a>. What they answer: docs/api.md of the project.</p>
{% for operation, fields in routes %}
<h2><code>POST {{ operation.path }}</code></h2>
<p>{{ operation.summary }}{% if operation.streams_as %}; with <code>stream</code> as
{{ operation.streams_as }}{% endif %}.</p>
<table cellpadding="4">
{% for name, field in fields %}<tr><td><code>{{ name }}</code></td>
<td>{{ "needed" if field.is_required() else field.default }}</td></tr>
{% endfor %}</table>
{% endfor %}
"""


def blueprint() -> Blueprint:
    """The document, and a page to read it."""
    routes = Blueprint("openapi", __name__)

    @routes.get("/openapi.json")
    def openapi() -> dict[str, Any]:
        return document()

    @routes.get("/docs")
    def page() -> str:
        described = [(operation, operation.body.model_fields.items()) for operation in OPERATIONS]
        return render_template_string(_PAGE, routes=described)

    return routes


@cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    bodies = [(operation.body, "validation") for operation in OPERATIONS]
    names, schemas = models_json_schema(
        bodies,  # type: ignore[arg-type]  # a list of literals is one of strings to mypy
        ref_template="#/components/schemas/{model}",
    )
    paths = {
        operation.path: {"post": _describe(operation, names[operation.body, "validation"])}
        for operation in OPERATIONS
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "gemma-server", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }


def _describe(operation: Operation, schema: dict[str, Any]) -> dict[str, Any]:
    kinds = [_JSON] if operation.streams_as is None else [_JSON, operation.streams_as]
    return {
        "summary": operation.summary,
        "requestBody": {"required": True, "content": {_JSON: {"schema": schema}}},
        "responses": {
            "200": {"description": "the answer", "content": {kind: {} for kind in kinds}},
            "default": {"description": "an error", "content": {_JSON: {}}},
        },
    }
