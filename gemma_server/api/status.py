"""Routes for whoever runs the server: is it alive, is it ready, what is it doing."""

from typing import Literal

from flask import Blueprint, Response, current_app, render_template_string, request
from prometheus_client import CONTENT_TYPE_LATEST
from typing_extensions import TypedDict
from werkzeug.routing import Rule

from gemma_server.serving.metrics import Metrics
from gemma_server.serving.model import Readiness, ServedModel

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>gemma-server</title>
<body style="font: 16px/1.5 sans-serif; max-width: 40em; margin: 2em auto">
<h1>gemma-server</h1>
<p>Serves <b>{{ name }}</b>. OpenAI's clients take <code>/v1</code> as their base URL, and Ollama's
this address. What each route takes and answers is told in docs/api.md of the project.</p>
<ul>
{% for methods, path in routes %}<li><code>{{ methods }} {{ path }}</code></li>
{% endfor %}</ul>
"""


class Health(TypedDict):
    """GET /healthz."""

    status: Literal["ok"]


def blueprint(model: ServedModel, metrics: Metrics) -> Blueprint:
    """The routes for one model."""
    routes = Blueprint("ops", __name__)

    @routes.get("/")
    def index() -> Response:
        """What Ollama's clients look for; a browser gets a page that names the routes."""
        if request.accept_mimetypes.best_match(("text/plain", "text/html")) != "text/html":
            return Response("Ollama is running", mimetype="text/plain")
        rules = sorted(current_app.url_map.iter_rules(), key=lambda rule: rule.rule)
        named = [(_methods(rule), rule.rule) for rule in rules]
        return Response(render_template_string(_PAGE, name=model.name, routes=named))

    @routes.get("/healthz")
    def healthz() -> Health:
        return {"status": "ok"}

    @routes.get("/readyz")
    def readyz() -> tuple[Readiness, int, dict[str, str]]:
        body = model.readiness()
        return (body, 200, {}) if body["status"] == "ready" else (body, 503, {"Retry-After": "2"})

    @routes.get("/metrics")
    def exposition() -> Response:
        return Response(metrics.exposition(), content_type=CONTENT_TYPE_LATEST)

    return routes


def _methods(rule: Rule) -> str:
    return ", ".join(sorted((rule.methods or set()) - {"HEAD"}))
