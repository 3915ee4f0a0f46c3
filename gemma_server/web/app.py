"""The Flask app: all operations as routes, with the guard and the error handlers."""

import json
import os
import re
from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask, Response, g, request
from flask.json.provider import DefaultJSONProvider

from gemma_server.serving.models import Models
from gemma_server.serving.rate_limit import RateLimit
from gemma_server.settings import Settings, is_loopback
from gemma_server.web import errors
from gemma_server.web.body import discard_body
from gemma_server.web.guard import Guard
from gemma_server.web.origins import Origins
from gemma_server.web.routes import add_routes
from gemma_server.web.timing import server_timing

Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]

_SLASHES = re.compile("//+")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class _Json(DefaultJSONProvider):
    """Flask's own provider makes a new encoder for every answer."""

    _encoder = json.JSONEncoder(separators=(",", ":"))

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        """The document as text, its keys in their own order: /echo gives back what it got."""
        return self._encoder.encode(obj)


def make_app(models: Models, settings: Settings) -> Flask:
    """An app that serves `models`, which may still be loading."""
    app = Flask(__name__, static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.json = _Json(app)
    most = settings.key_requests_per_minute, settings.key_tokens_per_minute
    guard = Guard(
        api_keys={key: RateLimit("key", *most) for key in settings.api_keys()},
        local_only=settings.serves_tcp and is_loopback(settings.host),
    )

    origins = Origins(settings.origins)

    @app.before_request
    def begin() -> Response | None:
        given = request.environ.get("HTTP_X_REQUEST_ID", "")
        g.stages, g.job = {"parse_ms": 0.0}, None
        g.request_id = given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
        if (answer := origins.preflight()) is not None:
            return answer
        guard.check()
        origins.check()
        return None

    @app.after_request
    def end(response: Response) -> Response:
        response.headers["X-Request-Id"] = g.request_id
        response.headers["Server-Timing"] = server_timing()
        if (version := g.get("model_version")) is not None:
            response.headers["X-Model-Version"] = str(version)
        if (steps := g.get("degraded_to")) is not None:
            response.headers["X-Degraded"] = f"sampling_steps={steps}"
        origins.tell(response)
        if not g.get("body_read"):
            discard_body()
        rule = request.url_rule
        models.metrics.answered("unknown" if rule is None else rule.rule, response.status_code)
        return response

    add_routes(app, models)
    errors.register(app)
    app.wsgi_app = _with_plain_paths(app.wsgi_app)  # type: ignore[assignment]  # as Flask has it
    return app


def _with_plain_paths(wsgi: Wsgi) -> Wsgi:
    """Take `/v1//models/` for `/v1/models`: base URLs end with a slash or do not."""

    def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path: str = environ["PATH_INFO"]
        if "//" in path or path.endswith("/"):
            environ["PATH_INFO"] = _SLASHES.sub("/", path).rstrip("/") or "/"
        return wsgi(environ, start_response)

    return call
