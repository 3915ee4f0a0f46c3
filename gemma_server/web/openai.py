"""OpenAI's routes: /v1/completions, /v1/chat/completions, /v1/models; and /tokenize beside them.

What the official clients demand of the wire is told in their sources: openai/openai-python,
`_streaming.py`, and openai/openai-go, `packages/ssestream`.
"""

import time
import uuid
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response

from gemma_server.engine.request import Request
from gemma_server.errors import InvalidRequest, RequestError
from gemma_server.generation import Completion, Piece
from gemma_server.served import LoadedModel, ServedModel
from gemma_server.web.body import read_body
from gemma_server.web.errors import body_of
from gemma_server.web.job import Job
from gemma_server.web.messages import encode_messages
from gemma_server.web.metrics import Metrics
from gemma_server.web.openai_schema import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    OpenAIBody,
    TokenizeBody,
)
from gemma_server.web.schema import MAX_PROMPTS, as_list, seed_of
from gemma_server.web.streaming import DONE, PING, event, stream
from gemma_server.web.timing import timed


def blueprint(model: ServedModel, metrics: Metrics, max_steps: int | None) -> Blueprint:
    """The routes for one model."""
    routes = Blueprint("openai", __name__)

    @routes.post("/v1/chat/completions")
    def chat() -> Response | dict[str, Any]:
        model.require_ready()
        body = read_body(ChatBody)
        loaded = _find(model, body)
        ids = encode_messages(loaded, body.messages)
        return _respond(body, Chat(loaded), _job(body, [ids], loaded, metrics, max_steps))

    @routes.post("/v1/completions")
    def completions() -> Response | dict[str, Any]:
        model.require_ready()
        body = read_body(CompletionBody)
        loaded = _find(model, body)
        prompts = _encode(body, loaded)
        echoes = [loaded.tokenizer.decode(ids) for ids in prompts] if body.echo else None
        form = Text(loaded, body.n, echoes)
        return _respond(body, form, _job(body, prompts, loaded, metrics, max_steps))

    @routes.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [_describe(model.require_ready())]}

    @routes.get("/v1/models/<path:name>")
    def one_model(name: str) -> dict[str, Any]:
        return _describe(model.find(name))

    @routes.post("/tokenize")
    def tokenize() -> dict[str, Any]:
        model.require_ready()
        body = read_body(TokenizeBody)
        loaded = _find(model, body)
        with timed("tokenize"):
            ids = loaded.tokenizer.encode(body.prompt)[0 if body.add_special_tokens else 1 :]
        limit = loaded.engine.context_length
        return {"tokens": ids, "count": len(ids), "max_model_len": limit}

    @routes.post("/detokenize")
    def detokenize() -> dict[str, Any]:
        model.require_ready()
        body = read_body(DetokenizeBody)
        loaded = _find(model, body)
        _check_ids(body.tokens, "tokens", loaded)
        return {"prompt": loaded.tokenizer.decode(body.tokens)}

    return routes


def _find(model: ServedModel, body: OpenAIBody | TokenizeBody | DetokenizeBody) -> LoadedModel:
    """The model that the body names; the one there is, if it names none."""
    return model.require_ready() if body.model is None else model.find(body.model)


def _job(
    body: ChatBody | CompletionBody,
    prompts: list[list[int]],
    loaded: LoadedModel,
    metrics: Metrics,
    max_steps: int | None,
) -> Job:
    """`n` answers to each prompt, each with a seed of its own."""
    if len(prompts) * body.n > MAX_PROMPTS:
        raise InvalidRequest(
            f"{len(prompts)} prompts with n = {body.n}: at most {MAX_PROMPTS} answers at once",
            param="n",
        )
    steps = body.steps(loaded.engine.context_length, max_steps)
    stops = body.stop_ids(loaded.tokenizer.stop_ids, loaded.tokenizer.vocab_size)
    requests = [
        Request(tuple(ids), steps, body.sampling(seed_of(body.seed, index)), stops)
        for ids in prompts
        for index in range(body.n)
    ]
    return Job(loaded, requests, as_list(body.stop), metrics)


def _encode(body: CompletionBody, loaded: LoadedModel) -> list[list[int]]:
    """The ids of each prompt; an error names the prompt at fault."""
    encoded = []
    for index, prompt in enumerate(body.prompts):
        try:
            with timed("tokenize"):
                ids = loaded.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            _check_ids(ids, "prompt", loaded)
            loaded.engine.check_prompt(len(ids))
        except RequestError as error:
            error.param = f"prompt[{index}]" if body.has_several_prompts else "prompt"
            raise
        encoded.append(ids)
    return encoded


def _check_ids(ids: list[int], param: str, loaded: LoadedModel) -> None:
    vocab = loaded.tokenizer.vocab_size
    wrong = next((index for index in ids if not 0 <= index < vocab), None)
    if wrong is not None:
        message = f"{param}: {wrong} is no token; they go from 0 to {vocab - 1}"
        raise InvalidRequest(message, param=param)


def _respond(body: OpenAIBody, form: "Chat | Text", job: Job) -> Response | dict[str, Any]:
    if body.stream:
        return stream(job, EventWriter(form, with_usage=body.stream_options.include_usage))
    completions = job.run()
    choices = [form.choice(index, item) for index, item in enumerate(completions)]
    head = form.head(form.object)
    return {**head, "choices": choices, "usage": _usage(job), "timings": job.timings()}


def _usage(job: Job) -> dict[str, Any]:
    usage = job.usage()
    prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usage["cached_tokens"]},
    }


def _describe(loaded: LoadedModel) -> dict[str, Any]:
    return {
        "id": loaded.name,
        "object": "model",
        "created": int(loaded.ready_at),
        "owned_by": "google",
        "max_model_len": loaded.engine.context_length,
    }


class _Form:
    """What all parts of one answer share: an id, a time, and the model that gave it."""

    id_prefix = ""
    object = ""
    chunk_object = ""

    def __init__(self, loaded: LoadedModel) -> None:
        self._id = f"{self.id_prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = loaded.name
        self._fingerprint = f"fp_{loaded.facts.digest[:12]}"

    def head(self, kind: str) -> dict[str, Any]:
        """The fields in front of the choices."""
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._fingerprint,
        }


class Chat(_Form):
    """Choices that hold messages."""

    id_prefix, object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, index: int, completion: Completion) -> dict[str, Any]:
        """A whole answer."""
        message = {"role": "assistant", "content": completion.text, "refusal": None}
        return _choice(index, {"message": message}, completion.finish_reason)

    def opening(self, index: int) -> dict[str, Any] | None:
        """Who speaks, before there is text."""
        return _choice(index, {"delta": {"role": "assistant", "content": ""}}, None)

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        """More text."""
        return _choice(index, {"delta": {"content": piece.text}}, None)

    def ending(self, index: int, completion: Completion) -> dict[str, Any]:
        """Why there is no more."""
        return _choice(index, {"delta": {}}, completion.finish_reason)


class Text(_Form):
    """Choices that hold text, behind the prompt's own where it is to be echoed."""

    id_prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, loaded: LoadedModel, n: int, echoes: list[str] | None) -> None:
        super().__init__(loaded)
        self._n, self._echoes = n, echoes

    def choice(self, index: int, completion: Completion) -> dict[str, Any]:
        """A whole answer."""
        text = (self._echo(index) or "") + completion.text
        return _choice(index, {"text": text}, completion.finish_reason)

    def opening(self, index: int) -> dict[str, Any] | None:
        """The prompt, if it is to be echoed."""
        echo = self._echo(index)
        return None if echo is None else _choice(index, {"text": echo}, None)

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        """More text."""
        return _choice(index, {"text": piece.text}, None)

    def ending(self, index: int, completion: Completion) -> dict[str, Any]:
        """Why there is no more."""
        return _choice(index, {"text": ""}, completion.finish_reason)

    def _echo(self, index: int) -> str | None:
        return None if self._echoes is None else self._echoes[index // self._n]


def _choice(index: int, content: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, **content, "logprobs": None, "finish_reason": finish_reason}


class EventWriter:
    """Chunks as server-sent events. The one with a choice's finish_reason is its last, and usage
    comes once: openai-go adds it up."""

    mimetype = "text/event-stream"

    def __init__(self, form: Chat | Text, *, with_usage: bool) -> None:
        self._form, self._with_usage = form, with_usage
        self._opened: set[int] = set()

    def piece(self, index: int, piece: Piece) -> bytes:
        """More text of one choice."""
        return self._open(index) + self._chunk(self._form.part(index, piece))

    def ping(self) -> bytes:
        """A comment."""
        return PING

    def end(self, job: Job) -> Iterator[bytes]:
        """Why each choice ended, and what all of it took."""
        completions = job.completions
        for index, completion in enumerate(completions):
            last = index == len(completions) - 1
            more = {"timings": job.timings()} if last else {}
            ending = self._form.ending(index, completion)
            yield self._open(index) + self._chunk(ending, **more)
        if self._with_usage:
            yield self._chunk(None, usage=_usage(job))
        yield DONE

    def failure(self, error: RequestError) -> bytes:
        """The error as any answer has it."""
        return event(body_of(error))

    def _open(self, index: int) -> bytes:
        if index in self._opened:
            return b""
        self._opened.add(index)
        opening = self._form.opening(index)
        return b"" if opening is None else self._chunk(opening)

    def _chunk(self, choice: dict[str, Any] | None, **more: Any) -> bytes:
        choices = [] if choice is None else [choice]
        return event({**self._form.head(self._form.chunk_object), "choices": choices, **more})
