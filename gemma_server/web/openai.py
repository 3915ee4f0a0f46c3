"""OpenAI's routes: /v1/completions, /v1/chat/completions, /v1/models; and /tokenize beside them.

What the official clients demand of the wire is told in their sources: openai/openai-python,
`_streaming.py`, and openai/openai-go, `packages/ssestream`.
"""

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from flask import Blueprint, Response

from gemma_server.engine.request import Logprobs, Request, Token
from gemma_server.errors import InvalidRequest, RequestError
from gemma_server.generation import Completion, Piece
from gemma_server.served import LoadedModel, ServedModel
from gemma_server.web.body import read_body
from gemma_server.web.errors import body_of
from gemma_server.web.fitting import Fitting
from gemma_server.web.job import Job
from gemma_server.web.logprobs import Scored, TextOffsets, entries, scored
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
        steps = body.steps(loaded.engine.context_length, max_steps)
        fitting = Fitting.of(loaded, steps, truncate=body.truncate)
        ids = encode_messages(loaded, body.messages, fitting)
        form = Chat(loaded, with_logprobs=bool(body.logprobs))
        return _respond(body, form, _job(body, [ids], steps, fitting, loaded))

    @routes.post("/v1/completions")
    def completions() -> Response | dict[str, Any]:
        model.require_ready()
        body = read_body(CompletionBody)
        loaded = _find(model, body)
        steps = body.steps(loaded.engine.context_length, max_steps)
        fitting = Fitting.of(loaded, steps, truncate=body.truncate)
        prompts = _encode(body, loaded, fitting)
        form = Text(loaded, prompts, body)
        return _respond(body, form, _job(body, prompts, steps, fitting, loaded))

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

    def _job(
        body: ChatBody | CompletionBody,
        prompts: list[list[int]],
        steps: int,
        fitting: Fitting,
        loaded: LoadedModel,
    ) -> Job:
        requests = _requests(body, prompts, steps, loaded)
        return Job(loaded, requests, as_list(body.stop), metrics, fitting)

    return routes


def _find(model: ServedModel, body: OpenAIBody | TokenizeBody | DetokenizeBody) -> LoadedModel:
    """The model that the body names; the one there is, if it names none."""
    return model.require_ready() if body.model is None else model.find(body.model)


def _requests(
    body: ChatBody | CompletionBody, prompts: list[list[int]], steps: int, loaded: LoadedModel
) -> list[Request]:
    """`n` answers to each prompt, each with a seed of its own."""
    if len(prompts) * body.n > MAX_PROMPTS:
        raise InvalidRequest(
            f"{len(prompts)} prompts with n = {body.n}: at most {MAX_PROMPTS} answers at once",
            param="n",
        )
    vocab_size = loaded.tokenizer.vocab_size
    stops = body.stop_ids(loaded.tokenizer.stop_ids, vocab_size)
    bias = body.bias(vocab_size)
    return [
        Request(
            tuple(ids),
            steps,
            body.sampling(seed_of(body.seed, index), bias),
            stops,
            body.min_tokens,
            body.wanted_logprobs,
            prompt_logprobs=body.scores_prompt,
        )
        for ids in prompts
        for index in range(body.n)
    ]


def _encode(body: CompletionBody, loaded: LoadedModel, fitting: Fitting) -> list[list[int]]:
    """The ids of each prompt; an error names the prompt at fault."""
    encoded = []
    for index, prompt in enumerate(body.prompts):
        try:
            with timed("tokenize"):
                ids = loaded.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            _check_ids(ids, "prompt", loaded)
            ids = fitting.ids(ids)
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
        return stream(
            job, EventWriter(form, n=body.n, with_usage=body.stream_options.include_usage)
        )
    completions = job.run()
    choices = [form.choice(index, item) for index, item in enumerate(completions)]
    head = form.head(form.object)
    return {**head, "choices": choices, "usage": _usage(job, body.n), **job.costs()}


def _usage(job: Job, n: int) -> dict[str, Any]:
    """A prompt counts once, however many answers it gets."""
    usage = job.usage()
    prompt, completion = usage["prompt_tokens"] // n, usage["completion_tokens"]
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
        self._tokenizer = loaded.tokenizer

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

    def __init__(self, loaded: LoadedModel, *, with_logprobs: bool) -> None:
        super().__init__(loaded)
        self._with_logprobs = with_logprobs

    def choice(self, index: int, completion: Completion) -> dict[str, Any]:
        """A whole answer."""
        message = {"role": "assistant", "content": completion.text, "refusal": None}
        reason, logprobs = completion.finish_reason, self._logprobs(completion.tokens)
        return _choice(index, {"message": message}, reason, logprobs)

    def opening(self, index: int, scores: Sequence[Logprobs]) -> dict[str, Any] | None:
        """Who speaks, before there is text."""
        return _choice(index, {"delta": {"role": "assistant", "content": ""}}, None)

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        """More text."""
        delta = {"delta": {"content": piece.text}}
        return _choice(index, delta, None, self._logprobs(piece.tokens))

    def ending(self, index: int, completion: Completion) -> dict[str, Any]:
        """Why there is no more."""
        return _choice(index, {"delta": {}}, completion.finish_reason)

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        return {"content": entries(self._tokenizer, tokens), "refusal": None}


class Text(_Form):
    """Choices that hold text, behind the prompt's own where it is to be echoed."""

    id_prefix, object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, loaded: LoadedModel, prompts: list[list[int]], body: CompletionBody) -> None:
        super().__init__(loaded)
        self._prompts = [ids for ids in prompts for _ in range(body.n)] if body.echo else None
        self._offsets: list[TextOffsets] = []
        if body.logprobs is not None:
            self._offsets = [TextOffsets(loaded.tokenizer) for _ in range(len(prompts) * body.n)]

    def choice(self, index: int, completion: Completion) -> dict[str, Any]:
        """A whole answer."""
        echo, tokens = self._echo(index, completion.prompt_logprobs)
        logprobs = self._logprobs(index, tokens + scored(completion.tokens))
        return _choice(index, {"text": echo + completion.text}, completion.finish_reason, logprobs)

    def opening(self, index: int, scores: Sequence[Logprobs]) -> dict[str, Any] | None:
        """The prompt, if it is to be echoed."""
        if self._prompts is None:
            return None
        text, tokens = self._echo(index, scores)
        return _choice(index, {"text": text}, None, self._logprobs(index, tokens))

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        """More text."""
        logprobs = self._logprobs(index, scored(piece.tokens))
        return _choice(index, {"text": piece.text}, None, logprobs)

    def ending(self, index: int, completion: Completion) -> dict[str, Any]:
        """Why there is no more."""
        return _choice(index, {"text": ""}, completion.finish_reason)

    def _echo(self, index: int, scores: Sequence[Logprobs]) -> tuple[str, list[Scored]]:
        if self._prompts is None:
            return "", []
        ids = self._prompts[index]
        return self._tokenizer.decode(ids), list(zip(ids, (None, *scores), strict=False))

    def _logprobs(self, index: int, tokens: list[Scored]) -> dict[str, Any] | None:
        return self._offsets[index].lists(tokens) if self._offsets else None


def _choice(
    index: int,
    content: dict[str, Any],
    finish_reason: str | None,
    logprobs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}


class EventWriter:
    """Chunks as server-sent events. The one with a choice's finish_reason is its last, and usage
    comes once: openai-go adds it up."""

    mimetype = "text/event-stream"

    def __init__(self, form: Chat | Text, *, n: int, with_usage: bool) -> None:
        self._form, self._n, self._with_usage = form, n, with_usage
        self._opened: set[int] = set()

    def piece(self, index: int, piece: Piece) -> bytes:
        """More text of one choice."""
        opening = self._open(index, piece.prompt)
        return opening if piece.prompt else opening + self._chunk(self._form.part(index, piece))

    def ping(self) -> bytes:
        """A comment."""
        return PING

    def end(self, job: Job) -> Iterator[bytes]:
        """Why each choice ended, and what all of it took."""
        completions = job.completions
        for index, completion in enumerate(completions):
            last = index == len(completions) - 1
            more = job.costs() if last else {}
            ending = self._form.ending(index, completion)
            yield self._open(index) + self._chunk(ending, **more)
        if self._with_usage:
            yield self._chunk(None, usage=_usage(job, self._n))
        yield DONE

    def failure(self, error: RequestError) -> bytes:
        """The error as any answer has it."""
        return event(body_of(error))

    def _open(self, index: int, scores: Sequence[Logprobs] = ()) -> bytes:
        if index in self._opened:
            return b""
        self._opened.add(index)
        opening = self._form.opening(index, scores)
        return b"" if opening is None else self._chunk(opening)

    def _chunk(self, choice: dict[str, Any] | None, **more: Any) -> bytes:
        choices = [] if choice is None else [choice]
        return event({**self._form.head(self._form.chunk_object), "choices": choices, **more})
