"""The server's own operations: /prompt generates, /echo measures the hop, a frame scores."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NotRequired

from typing_extensions import TypedDict

from gemma_server.api.caller import Caller
from gemma_server.api.constraints import Form
from gemma_server.api.errors import prompt_in
from gemma_server.api.generation import Piece
from gemma_server.api.job import Job, Usage
from gemma_server.api.logprobs import TextLogprobs, TextOffsets
from gemma_server.api.native.schema import EchoBody, PromptBody, PromptOptions, ScoreBody
from gemma_server.api.operation import EVENTS, Document, Operation, Stream, StreamType
from gemma_server.api.prompts import encode_prompt
from gemma_server.api.schemas import as_list
from gemma_server.api.timing import Stages, timed
from gemma_server.engine.priority import Priority
from gemma_server.engine.request import FinishReason, Request
from gemma_server.errors import InvalidRequest
from gemma_server.serving.model import GenerativeModel
from gemma_server.serving.models import Models

DEPTHS = ("queue", "device")  # how far an echo goes beyond the transport


class EchoAnswer(TypedDict):
    """POST /echo."""

    echo_prompt: Any


class Degraded(TypedDict):
    """What the answer got less of, because the queue was filling."""

    sampling_steps: int  # that it had at most


class PromptAnswer(TypedDict):
    """POST /prompt: a string answers a string, lists answer a list."""

    response: str | list[str]
    finish_reason: FinishReason | list[FinishReason]
    usage: Usage
    timings: dict[str, float]  # milliseconds of each stage
    model_version: str  # a whole number
    degraded: NotRequired[Degraded]


class PromptPart(TypedDict):
    """More of a streamed text."""

    response: str


class Scores(TypedDict):
    """How likely a text is, token by token."""

    logprobs: TextLogprobs
    usage: Usage
    timings: dict[str, float]  # milliseconds of each stage


def echo(body: EchoBody, models: Models, caller: Caller) -> EchoAnswer:
    """Send back what came; `through` says how far it goes first."""
    through = caller.params.get("through")
    if through is not None:
        if through not in DEPTHS:
            what = " or ".join(DEPTHS)
            raise InvalidRequest(f"through: {through[:40]!r} is not {what}", param="through")
        caller.hold(models.resolve, None).engine.probe(device=through == "device")
    return {"echo_prompt": body.prompt}


def prompt(body: PromptBody, models: Models, caller: Caller) -> PromptAnswer | Stream:
    """Continue a text, or several in parallel."""
    loaded = caller.hold(models.resolve, body.model)
    if body.stream and not isinstance(body.prompt, str):
        raise InvalidRequest("a list of prompts cannot be streamed", param="stream")
    job = begin([(body.texts, body)], loaded, models, caller, body.priority)
    return Stream(job, PromptForm()) if body.stream else _whole(body, job)


def begin(
    asked: Sequence[tuple[Mapping[str, str], PromptOptions]],
    loaded: GenerativeModel,
    models: Models,
    caller: Caller,
    priority: Priority | None = None,
) -> Job:
    """Queue texts, each under the name of its field, to be continued side by side as they are to
    be.

    Raises:
        RequestError: nothing was queued.
    """
    requests, stops = list[Request](), list[list[str]]()
    for texts, options in asked:
        requests += _requests(texts, options, loaded, caller.stages)
        stops += [as_list(options.stop)] * len(texts)
    return Job(loaded, requests, stops, models.metrics, caller, priority=priority)


def score(body: ScoreBody, models: Models, caller: Caller) -> Scores:
    """The logprobs of a text, whose first token has none."""
    loaded = caller.hold(models.resolve, body.model)
    with timed(caller.stages, "tokenize"), prompt_in("prompt"):
        ids = tuple(encode_prompt(loaded, body.prompt))
    request = Request(ids, 0, top_logprobs=body.top_logprobs, prompt_logprobs=True)
    job = Job(loaded, [request], [()], models.metrics, caller)
    [completion] = job.run()
    scored = zip(ids, (None, *completion.prompt_logprobs), strict=True)
    return {
        "logprobs": TextOffsets(loaded.tokenizer).lists(list(scored)),
        "usage": job.usage(),
        "timings": job.timings(),
    }


class PromptForm:
    """Parts of text, then one part that says how it ended."""

    def parts(self, index: int, piece: Piece) -> Iterator[Document]:
        """More text."""
        if piece.text:
            part: PromptPart = {"response": piece.text}
            yield part

    def keepalive(self) -> None:
        """No part: the transport has a keepalive of its own, if it needs one."""

    def end(self, job: Job) -> Iterator[Document]:
        """How it ended, and what it took."""
        [completion] = job.completions
        yield _answer(job, "", completion.finish_reason)


def _whole(body: PromptBody, job: Job) -> PromptAnswer:
    """Wait for all of it."""
    completions = job.run()
    texts = [completion.text for completion in completions]
    reasons = [completion.finish_reason for completion in completions]
    if isinstance(body.prompt, str):
        return _answer(job, texts[0], reasons[0])
    return _answer(job, texts, reasons)


def _answer(
    job: Job, text: str | list[str], reason: FinishReason | list[FinishReason]
) -> PromptAnswer:
    answer: PromptAnswer = {
        "response": text,
        "finish_reason": reason,
        "usage": job.usage(),
        "timings": job.timings(),
        "model_version": str(job.loaded.version),
    }
    if job.degraded_to is not None:
        answer["degraded"] = {"sampling_steps": job.degraded_to}
    return answer


def _requests(
    texts: Mapping[str, str], options: PromptOptions, loaded: GenerativeModel, stages: Stages
) -> list[Request]:
    """Encode all texts; an error names the field at fault."""
    context_length = loaded.engine.context_length
    steps = options.steps(limit=min(loaded.max_steps or context_length, context_length))
    requests, form = [], Form(options.asked)
    for param, text in texts.items():
        with timed(stages, "tokenize"), prompt_in(param):
            ids = encode_prompt(loaded, text)
        [constraint] = form.start(loaded, ids, 1)
        requests.append(options.request(ids, steps, loaded.tokenizer.stop_ids, constraint))
    return requests


OPERATIONS: tuple[Operation[Any], ...] = (
    Operation(
        "prompt",
        "Continue a text, or several",
        prompt,
        path="/prompt",
        frame="generate",
        body=PromptBody,
        answer=PromptAnswer,
        stream=StreamType(EVENTS, PromptPart | PromptAnswer),
    ),
    Operation(
        "echo",
        "Send back what came: the price of the hop",
        echo,
        path="/echo",
        body=EchoBody,
        answer=EchoAnswer,
        query=(("through", DEPTHS),),
    ),
    Operation(
        "score",
        "How likely each token of a text is",
        score,
        frame="score",
        body=ScoreBody,
        answer=Scores,
    ),
)
