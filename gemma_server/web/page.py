"""Routes that only HTTP has: the OpenAPI document, a page to read it, and `/`."""

from typing import Any

from flask import current_app, render_template_string, request
from werkzeug.routing import Rule

from gemma_server.api.caller import Caller
from gemma_server.api.operation import Answer, Document, Operation
from gemma_server.api.operations import OPERATIONS
from gemma_server.serving.models import Models
from gemma_server.web import openapi

_HTML = "text/html; charset=utf-8"
_INDEX = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>gemma-server</title>
<body style="font: 16px/1.5 sans-serif; max-width: 40em; margin: 2em auto">
<h1>gemma-server</h1>
<p>Serves <b>{{ name }}</b>. OpenAI's clients take <code>/v1</code> as their base URL, and Ollama's
this address. What each route takes and answers is told in docs/api.md of the project.</p>
<ul>
{% for methods, path in routes %}<li><code>{{ methods }} {{ path }}</code></li>
{% endfor %}</ul>
"""
_ROUTES_PAGE = """<!doctype html>
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
<h2><code>{{ operation.method }} {{ operation.path }}</code></h2>
<p>{{ operation.summary }}{% if operation.stream %}; with <code>stream</code> as
{{ operation.stream.content_type }}{% endif %}.</p>
{% for body in bodies %}{{ fields(body) }}{% endfor %}
{% for answer in answers %}<p>Answers {% for name in answer.properties %}<code>{{ name }}</code>
{% endfor %}</p>
{% endfor %}{% endfor %}
"""


def index(body: None, models: Models, caller: Caller) -> Answer:
    """The text that Ollama's clients look for; a browser gets a page that names the routes."""
    if request.accept_mimetypes.best_match(("text/plain", "text/html")) != "text/html":
        return Answer("Ollama is running", content_type="text/plain; charset=utf-8")
    rules = sorted(current_app.url_map.iter_rules(), key=lambda rule: rule.rule)
    named = [(_methods(rule), rule.rule) for rule in rules]
    name = models.readiness()["model"]
    return Answer(render_template_string(_INDEX, name=name, routes=named), content_type=_HTML)


def _methods(rule: Rule) -> str:
    return ", ".join(sorted((rule.methods or set()) - {"HEAD"}))


def document(body: None, models: Models, caller: Caller) -> Document:
    """The OpenAPI document."""
    return openapi.document(ROUTES)


def docs(body: None, models: Models, caller: Caller) -> Answer:
    """A page that shows the OpenAPI document."""
    routes = [
        (operation, *openapi.objects_of(ROUTES, operation))
        for operation in ROUTES
        if operation.path is not None
    ]
    return Answer(render_template_string(_ROUTES_PAGE, routes=routes), content_type=_HTML)


PAGES: tuple[Operation[Any], ...] = (
    Operation(
        "index",
        "Whether a server is there",
        index,
        method="GET",
        path="/",
        text=("text/plain", "text/html"),
    ),
    Operation(
        "openapi",
        "This document",
        document,
        method="GET",
        path="/openapi.json",
        answer=dict[str, Any],
    ),
    Operation(
        "docs",
        "This document as a page",
        docs,
        method="GET",
        path="/docs",
        text=("text/html",),
    ),
)
ROUTES: tuple[Operation[Any], ...] = (*OPERATIONS, *PAGES)
