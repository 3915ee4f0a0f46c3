"""Operations as Flask's routes."""

from contextlib import ExitStack
from functools import partial
from typing import Any

from flask import Flask, Response, g, json, request

from gemma_server.api.caller import Caller, Running
from gemma_server.api.document import write
from gemma_server.api.operation import Answer, Operation, Stream
from gemma_server.api.schemas import ModelBody
from gemma_server.serving.model import LoadedModel
from gemma_server.serving.models import Models
from gemma_server.serving.rate_limit import NO_LIMIT
from gemma_server.web.body import read_body
from gemma_server.web.guard import came_by_unix_socket
from gemma_server.web.page import ROUTES
from gemma_server.web.peer import deadline, disconnect_check, peer_name, priority
from gemma_server.web.streaming import stream

_JSON = "application/json"


def add_routes(app: Flask, models: Models) -> None:
    """A route for each operation that has a path."""
    for operation in ROUTES:
        if operation.path is not None:
            rule = operation.path.replace("{", "<path:").replace("}", ">")
            view = partial(_answer, operation, models)
            app.add_url_rule(rule, operation.name, view, methods=[operation.method])


def _answer(operation: Operation[Any], models: Models, **in_path: str) -> Response:
    """Have the operation's handler answer the current request."""
    body = _read(operation, models)
    with ExitStack() as held:
        answer = operation.handle(body, models, _caller(operation, held, in_path))
        if isinstance(answer, Stream):
            return stream(answer, operation, held)
        return _respond(answer if isinstance(answer, Answer) else Answer(answer))


def _read(operation: Operation[Any], models: Models) -> Any:
    """The request's body; it is not read if it is for a model and none is ready."""
    if operation.body is None:
        return None
    if issubclass(operation.body, ModelBody):
        models.require_ready()
    return read_body(operation.body, needed=operation.needs_body)


def _caller(operation: Operation[Any], held: ExitStack, in_path: dict[str, str]) -> Caller:
    queued = operation.is_queued
    return Caller(
        g.request_id,
        held,
        disconnect_check(),
        deadline=deadline() if queued else None,
        priority=priority() if queued else "interactive",
        stages=g.stages,
        params={**in_path, **request.args} if request.query_string else in_path,
        on_job=_note_job,
        on_lease=_note_lease,
        on_degraded=_note_degraded,
        api_key=g.get("api_key", ""),
        rate_limit=g.get("rate_limit", NO_LIMIT),
        connection=peer_name(),
        affinity=request.headers.get("X-Affinity", ""),
        is_operator="api_key" in g or came_by_unix_socket(),
    )


def _note_job(job: Running) -> None:
    g.job = job  # its timings go into the answer's headers


def _note_lease(loaded: LoadedModel) -> None:
    g.model_version = loaded.version  # goes into the answer's headers, too


def _note_degraded(steps: int) -> None:
    g.degraded_to = steps  # and this


def _respond(answer: Answer) -> Response:
    content, content_type = answer.content, answer.content_type
    if not isinstance(content, str | bytes):
        content, content_type = write(content, json.dumps), content_type or _JSON
        if content_type != _JSON:
            content += "\n"  # a stream of one line
    return Response(content, answer.status, answer.headers, content_type=content_type)
