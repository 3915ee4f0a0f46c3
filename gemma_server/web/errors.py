"""Errors on the wire: one JSON form for every cause, and Ollama's on Ollama's routes."""

import logging

from flask import Flask, Response, g, has_request_context, json, request
from typing_extensions import TypedDict
from werkzeug.exceptions import HTTPException

from gemma_server.api.errors import CLIENT_GONE, ErrorFacts, error_facts, facts, status_of
from gemma_server.api.generation import ClientGone
from gemma_server.errors import DeadlineExceeded, NotReady, Overloaded, RequestError

logger = logging.getLogger(__name__)


class ErrorBody(TypedDict):
    """Every error's form."""

    error: ErrorFacts


class OllamaErrorBody(TypedDict):
    """Every error's form on Ollama's routes: the message alone."""

    error: str


_TYPE_OF_STATUS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    500: "server_error",
}
# The official OpenAI clients try a failed request again, twice, unless they are told.
_RETRY: dict[type[RequestError], str] = {
    Overloaded: "true",
    NotReady: "true",
    DeadlineExceeded: "false",
}


def error_body(
    kind: str,
    message: str,
    code: str | None,
    request_id: str,
    param: str | None = None,
) -> ErrorBody | OllamaErrorBody:
    """The JSON form of an error: an object inside, or, as Ollama's clients want it, the message."""
    return _form(error_facts(kind, message, code, request_id, param))


def body_of(error: RequestError) -> ErrorBody | OllamaErrorBody:
    """The JSON form of one of our own errors."""
    return _form(facts(error, g.request_id))


def _form(found: ErrorFacts) -> ErrorBody | OllamaErrorBody:
    if has_request_context() and request.path.startswith("/api/"):
        return {"error": found["message"]}
    return {"error": found}


def register(app: Flask) -> None:
    """Answer every error of the app, Flask's own included, as JSON."""
    app.register_error_handler(RequestError, _request_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(ClientGone, _client_gone)
    app.register_error_handler(Exception, _bug)


def _respond(
    body: ErrorBody | OllamaErrorBody, status: int, headers: dict[str, str] | None = None
) -> Response:
    return Response(json.dumps(body), status, headers, mimetype="application/json")


def _request_error(error: RequestError) -> Response:
    headers = {}
    if type(error) in _RETRY:
        headers["X-Should-Retry"] = _RETRY[type(error)]
    if isinstance(error, Overloaded | NotReady):
        headers["Retry-After"] = str(error.retry_after_s)
    return _respond(body_of(error), status_of(error), headers)


def _http_error(error: HTTPException) -> Response:
    status = error.code or 500
    kind = _TYPE_OF_STATUS.get(status, "invalid_request_error")
    code = error.name.lower().replace(" ", "_")
    theirs = dict(error.get_headers())
    headers: dict[str, str] = {
        name: theirs[name] for name in ("Allow", "WWW-Authenticate") if name in theirs
    }
    message = error.description or error.name
    return _respond(error_body(kind, message, code, g.request_id), status, headers)


def _client_gone(error: ClientGone) -> Response:
    body = error_body("client_closed", "the client went away", None, g.request_id)
    return _respond(body, CLIENT_GONE)  # for the log and the metrics: nobody reads it


def _bug(error: Exception) -> Response:
    logger.exception("request %s failed", g.request_id)
    message = "an error inside the server; its log has the details under this request id"
    return _respond(error_body("server_error", message, "internal", g.request_id), 500)
