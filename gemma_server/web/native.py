"""The sidecar's own routes: /prompt generates, /echo measures the hop."""

from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, request
from typing_extensions import TypedDict

from gemma_server.engine.request import FinishReason, Request
from gemma_server.errors import InvalidRequest, RequestError
from gemma_server.generation import Piece
from gemma_server.served import LoadedModel, ServedModel
from gemma_server.web.body import read_body, read_for
from gemma_server.web.errors import body_of
from gemma_server.web.job import Job, Usage
from gemma_server.web.metrics import Metrics
from gemma_server.web.schema import EchoBody, PromptBody, as_list
from gemma_server.web.streaming import DONE, PING, event, stream
from gemma_server.web.timing import timed

DEPTHS = ("queue", "device")  # how far an echo goes, if not only through HTTP


class EchoAnswer(TypedDict):
    """POST /echo."""

    echo_prompt: Any


class PromptAnswer(TypedDict):
    """POST /prompt: a string answers a string, lists answer a list."""

    response: str | list[str]
    finish_reason: FinishReason | list[FinishReason]
    usage: Usage
    timings: dict[str, float]  # milliseconds of each stage


class PromptPart(TypedDict):
    """More of a streamed text."""

    response: str


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
        if body.stream and not isinstance(body.prompt, str):
            raise InvalidRequest("a list of prompts cannot be streamed", param="stream")
        context_length = loaded.engine.context_length
        steps = body.steps(limit=min(max_steps or context_length, context_length))
        job = Job(loaded, _requests(body, steps, loaded), as_list(body.stop), metrics)
        if body.stream:
            return stream(job, PromptWriter())
        return _answer(body, job)

    return routes


def _requests(body: PromptBody, steps: int, loaded: LoadedModel) -> list[Request]:
    """Encode all prompts; an error names the prompt at fault."""
    requests = []
    for index, text in enumerate(body.prompts):
        try:
            with timed("tokenize"):
                ids = loaded.tokenizer.encode(text)
            loaded.engine.check_prompt(len(ids))
        except RequestError as error:
            if isinstance(body.prompt, list):
                error.param = f"prompt[{index}]"
            raise
        requests.append(body.request(ids, steps, loaded.tokenizer.stop_ids))
    return requests


def _answer(body: PromptBody, job: Job) -> PromptAnswer:
    completions = job.run()
    texts = [completion.text for completion in completions]
    reasons = [completion.finish_reason for completion in completions]
    single = isinstance(body.prompt, str)
    return {
        "response": texts[0] if single else texts,
        "finish_reason": reasons[0] if single else reasons,
        "usage": job.usage(),
        "timings": job.timings(),
    }


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
        [completion] = job.completions
        last: PromptAnswer = {
            "response": "",
            "finish_reason": completion.finish_reason,
            "usage": job.usage(),
            "timings": job.timings(),
        }
        yield event(last)
        yield DONE

    def failure(self, error: RequestError) -> bytes:
        """The error as any answer has it."""
        return event(body_of(error))
