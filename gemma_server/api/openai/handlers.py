"""OpenAI's routes: /v1/completions, /v1/chat/completions, /v1/models; and /tokenize beside them.

What the official clients demand of the wire is told in their sources: openai/openai-python,
`_streaming.py`, and openai/openai-go, `packages/ssestream`.
"""

from typing import Literal

from flask import Blueprint, Response, g
from typing_extensions import TypedDict

from gemma_server.api.chat import encode_messages
from gemma_server.api.job import Job
from gemma_server.api.openai.schema import (
    ChatCompletionBody,
    CompletionBody,
    DetokenizeBody,
)
from gemma_server.api.openai.tokens import TokenIds, TokenizeBody, token_ids
from gemma_server.api.schemas import MAX_PROMPTS, as_list, check_tokens, seed_of
from gemma_server.api.truncation import Fitting
from gemma_server.engine.request import Request
from gemma_server.errors import InvalidRequest, RequestError
from gemma_server.serving.metrics import Metrics
from gemma_server.serving.model import LoadedModel, ServedModel
from gemma_server.web.body import read_for
from gemma_server.web.client import caller
from gemma_server.api.openai.answers import (
    ChatCompletion,
    ChatForm,
    EventWriter,
    TextCompletion,
    TextForm,
)
from gemma_server.web.streaming import stream
from gemma_server.web.timing import timed


class ModelCard(TypedDict):
    """The model, to those who look for one."""

    id: str
    object: Literal["model"]
    created: int  # seconds since 1970
    owned_by: str
    max_model_len: int  # tokens, as vLLM has it


class ModelCards(TypedDict):
    """All models: the one."""

    object: Literal["list"]
    data: list[ModelCard]


class TokensText(TypedDict):
    """POST /detokenize."""

    prompt: str


def blueprint(model: ServedModel, metrics: Metrics, max_steps: int | None) -> Blueprint:
    """The routes for one model."""
    routes = Blueprint("openai", __name__)

    @routes.post("/v1/chat/completions")
    def chat() -> Response | ChatCompletion:
        body, loaded = read_for(model, ChatCompletionBody)
        steps = body.steps(loaded.engine.context_length, max_steps)
        fitting = Fitting.of(loaded, steps, truncate=body.truncate)
        ids = encode_messages(loaded, body.messages, fitting, g.timings, goes_on=body.goes_on)
        job = _job(body, [ids], steps, fitting, loaded)
        form = ChatForm(loaded, with_logprobs=body.logprobs)
        if body.stream:
            return _stream(body, form, job)
        job.run()
        return form.answer(job, body.n)

    @routes.post("/v1/completions")
    def completions() -> Response | TextCompletion:
        body, loaded = read_for(model, CompletionBody)
        steps = body.steps(loaded.engine.context_length, max_steps)
        fitting = Fitting.of(loaded, steps, truncate=body.truncate)
        prompts = _encode(body, loaded, fitting)
        job = _job(body, prompts, steps, fitting, loaded)
        form = TextForm(loaded, prompts, body)
        if body.stream:
            return _stream(body, form, job)
        job.run()
        return form.answer(job, body.n)

    @routes.get("/v1/models")
    def models() -> ModelCards:
        return {"object": "list", "data": [_describe(model.require_ready())]}

    @routes.get("/v1/models/<path:name>")
    def one_model(name: str) -> ModelCard:
        return _describe(model.find(name))

    @routes.post("/tokenize")
    def tokenize() -> TokenIds:
        body, loaded = read_for(model, TokenizeBody)
        with timed("tokenize"):
            return token_ids(body, loaded)

    @routes.post("/detokenize")
    def detokenize() -> TokensText:
        body, loaded = read_for(model, DetokenizeBody)
        check_tokens(body.tokens, loaded.tokenizer.vocab_size, "tokens")
        return {"prompt": loaded.tokenizer.decode(body.tokens)}

    def _job(
        body: ChatCompletionBody | CompletionBody,
        prompts: list[list[int]],
        steps: int,
        fitting: Fitting,
        loaded: LoadedModel,
    ) -> Job:
        requests = _requests(body, prompts, steps, loaded)
        return Job(loaded, requests, as_list(body.stop), metrics, caller(), fitting)

    return routes


def _requests(
    body: ChatCompletionBody | CompletionBody,
    prompts: list[list[int]],
    steps: int,
    loaded: LoadedModel,
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
            check_tokens(ids, loaded.tokenizer.vocab_size, "prompt")
            ids = fitting.ids(ids)
            loaded.engine.check_prompt(len(ids))
        except RequestError as error:
            error.param = f"prompt[{index}]" if body.has_several_prompts else "prompt"
            raise
        encoded.append(ids)
    return encoded


def _stream(
    body: ChatCompletionBody | CompletionBody, form: ChatForm | TextForm, job: Job
) -> Response:
    return stream(job, EventWriter(form, n=body.n, with_usage=body.stream_options.include_usage))


def _describe(loaded: LoadedModel) -> ModelCard:
    return {
        "id": loaded.name,
        "object": "model",
        "created": int(loaded.ready_at),
        "owned_by": "google",
        "max_model_len": loaded.engine.context_length,
    }
