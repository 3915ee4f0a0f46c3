"""The sidecar's own routes: /prompt generates, /echo measures the hop."""

from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, request
from typing_extensions import TypedDict

from gemma_server.api.generation import Piece
from gemma_server.api.job import Job
from gemma_server.api.native.prompt import (
    PromptAnswer,
    PromptPart,
    last_part,
    prompt_job,
    whole_answer,
)
from gemma_server.api.schemas import EchoBody, PromptBody
from gemma_server.errors import InvalidRequest, RequestError
from gemma_server.serving.metrics import Metrics
from gemma_server.serving.model import ServedModel
from gemma_server.web.body import read_body, read_for
from gemma_server.web.client import caller
from gemma_server.web.errors import body_of
from gemma_server.web.streaming import DONE, PING, event, stream

DEPTHS = ("queue", "device")  # how far an echo goes, if not only through HTTP


class EchoAnswer(TypedDict):
    """POST /echo."""

    echo_prompt: Any


def blueprint(model: ServedModel, metrics: Metrics, max_steps: int | None) -> Blueprint:
    """The routes for one model."""
    routes = Blueprint("native", __name__)

    @routes.post("/echo")
    def echo() -> EchoAnswer:
        body = read_body(EchoBody)
        if request.query_string and (through := request.args.get("through")) is not None:
            if through not in DEPTHS:
                what = " or ".join(DEPTHS)
                raise InvalidRequest(f"through: {through[:40]!r} is not {what}", param="through")
            model.require_ready().engine.visit(device=through == "device")
        return {"echo_prompt": body.prompt}

    @routes.post("/prompt")
    def prompt() -> Response | PromptAnswer:
        body, loaded = read_for(model, PromptBody)
        job = prompt_job(body, loaded, max_steps, metrics, caller())
        if body.stream:
            return stream(job, PromptWriter())
        return whole_answer(body, job)

    return routes


class PromptWriter:
    """`{"response": "piece"}` events, then one that tells how it ended."""

    mimetype = "text/event-stream"

    def piece(self, index: int, piece: Piece) -> bytes:
        """More text."""
        part: PromptPart = {"response": piece.text}
        return event(part) if piece.text else b""

    def ping(self) -> bytes:
        """A comment."""
        return PING

    def end(self, job: Job) -> Iterator[bytes]:
        """How it ended, and what it took."""
        yield event(last_part(job))
        yield DONE

    def failure(self, error: RequestError) -> bytes:
        """The error as any answer has it."""
        return event(body_of(error))
