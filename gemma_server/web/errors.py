"""Errors on the wire: one JSON form for every cause, and a dialect's own on its routes."""

import logging
import re

from flask import Flask, Response, g, json, request
from werkzeug.exceptions import HTTPException

from gemma_server.api.errors import (
    CLIENT_CLOSED,
    MESSAGE_ALONE,
    STANDARD,
    ErrorBody,
    ErrorForm,
    error_body,
    make_error_body,
    status_of,
)
from gemma_server.errors import DeadlineExceeded, Disconnected, NotReady, Overloaded, RequestError

logger = logging.getLogger(__name__)

# The routes of Ollama, TensorFlow Serving and the Open Inference Protocol.
_MESSAGE_ALONE = re.compile(
    r"/api/.*|/v2(/.*)?|/v1/models/(.*:predict|(.*/)?metadata|(.*/)?(versions|labels)(/.*)?)",
    re.DOTALL,  # a path can have a line break in it
)
_TYPE_OF_STATUS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    500: "server_error",
}


def register(app: Flask) -> None:
    """Answer every error of the app, Flask's own included, as JSON."""
    app.register_error_handler(RequestError, _request_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Disconnected, _disconnected)
    app.register_error_handler(Exception, _bug)


def _respond(body: ErrorBody, status: int, headers: dict[str, str] | None = None) -> Response:
    document = json.dumps(_form().write(body))
    return Response(document, status, headers, mimetype="application/json")


def _form() -> ErrorForm:
    """The form by the path alone: an unknown route can belong to a dialect, too."""
    return MESSAGE_ALONE if _MESSAGE_ALONE.fullmatch(request.path) else STANDARD


def _request_error(error: RequestError) -> Response:
    # The official OpenAI clients retry a failed request twice, unless told not to.
    headers = {}
    if isinstance(error, Overloaded | NotReady):
        headers = {"X-Should-Retry": "true", "Retry-After": str(error.retry_after_s)}
    elif isinstance(error, DeadlineExceeded):
        headers = {"X-Should-Retry": "false"}
    return _respond(error_body(error, g.request_id), status_of(error), headers)


def _http_error(error: HTTPException) -> Response:
    status = error.code or 500
    kind = _TYPE_OF_STATUS.get(status, "invalid_request_error")
    code = error.name.lower().replace(" ", "_")
    theirs = dict(error.get_headers())
    headers: dict[str, str] = {
        name: theirs[name] for name in ("Allow", "WWW-Authenticate") if name in theirs
    }
    message = error.description or error.name
    return _respond(make_error_body(kind, message, code, g.request_id), status, headers)


def _disconnected(error: Disconnected) -> Response:
    body = make_error_body("client_closed", "the client went away", None, g.request_id)
    return _respond(body, CLIENT_CLOSED)  # for log and metrics: no client reads it


def _bug(error: Exception) -> Response:
    logger.exception("request %s failed", g.request_id)
    message = "an error inside the server; its log has the details under this request id"
    return _respond(make_error_body("server_error", message, "internal", g.request_id), 500)
