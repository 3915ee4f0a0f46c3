"""Ollama's routes: /api/generate, /api/chat, and those that tell what is there.

The wire as ollama/ollama's `api/types.go` and ollama/ollama-python's `_types.py` have it.
"""

from datetime import UTC, datetime

from flask import Blueprint, Response, g
from typing_extensions import TypedDict

from gemma_server.api.chat import encode_messages
from gemma_server.api.job import Job
from gemma_server.api.ollama.schema import ChatBody, GenerateBody, OllamaBody, ShowBody
from gemma_server.api.schemas import as_list, check_tokens
from gemma_server.api.truncation import Fitting
from gemma_server.engine.request import Request
from gemma_server.errors import InvalidRequest, RequestError
from gemma_server.serving.metrics import Metrics
from gemma_server.serving.model import LoadedModel, ServedModel
from gemma_server.text.chat_template import Message, encode_chat
from gemma_server.web.body import read_for
from gemma_server.web.client import caller
from gemma_server.api.ollama.answers import (
    ChatForm,
    Chatted,
    Generated,
    GenerateForm,
    Idle,
    IdleChat,
    IdleText,
    LineWriter,
    head,
    line,
    rfc3339,
    spoken,
)
from gemma_server.web.streaming import stream
from gemma_server.web.timing import timed

# Whose routes these are: clients look for the least that they work with (clients/compat has it).
_OLLAMA_VERSION = "0.17.4"
_NEVER = "9999-12-31T23:59:59Z"
_TEMPLATE = (
    "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    '{{ if eq .Role "assistant" }}'
    "<start_of_turn>model\n{{ .Content }}{{ if not $last }}<end_of_turn>\n{{ end }}"
    "{{ else }}<start_of_turn>user\n{{ .Content }}<end_of_turn>\n"
    "{{ if $last }}<start_of_turn>model\n{{ end }}{{ end }}{{ end }}"
)


class Details(TypedDict):
    """What kind of model it is."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Tag(TypedDict):
    """The model, to those who look for one."""

    name: str
    model: str
    modified_at: str
    size: int  # bytes
    digest: str
    details: Details


class Tags(TypedDict):
    """GET /api/tags: all models, which is the one."""

    models: list[Tag]


class RunningTag(Tag):
    """The model in memory."""

    expires_at: str
    size_vram: int  # bytes
    context_length: int  # tokens


class RunningTags(TypedDict):
    """GET /api/ps."""

    models: list[RunningTag]


class Description(TypedDict):
    """POST /api/show."""

    details: Details
    model_info: dict[str, str | int]
    capabilities: list[str]
    template: str
    modified_at: str


class Version(TypedDict):
    """GET /api/version."""

    version: str


def blueprint(model: ServedModel, metrics: Metrics, max_steps: int | None) -> Blueprint:
    """The routes for one model."""
    routes = Blueprint("ollama", __name__)

    @routes.post("/api/generate")
    def generate() -> Response | Generated:
        body, loaded = read_for(model, GenerateBody)
        if not body.prompt:
            loads: IdleText = {**_idle(body), "response": ""}
            return _one_line(loads) if body.stream else loads
        steps, fitting = _room(body, loaded)
        ids = _encode(body, loaded, fitting)
        job = _job(body, ids, steps, fitting, loaded)
        form = GenerateForm(body, loaded, None if body.raw else ids)
        if body.stream:
            return stream(job, LineWriter(form))
        [completion] = job.run()
        return form.last(job, completion.text, completion.tokens)

    @routes.post("/api/chat")
    def chat() -> Response | Chatted:
        body, loaded = read_for(model, ChatBody)
        if not body.messages:
            loads: IdleChat = {**_idle(body), "message": spoken("")}
            return _one_line(loads) if body.stream else loads
        steps, fitting = _room(body, loaded)
        # As Ollama's template for Gemma 3 has it: what the model was made to say goes on.
        goes_on = body.messages[-1].role == "assistant"
        ids = encode_messages(loaded, body.messages, fitting, g.timings, goes_on=goes_on)
        job = _job(body, ids, steps, fitting, loaded)
        form = ChatForm(body, loaded)
        if body.stream:
            return stream(job, LineWriter(form))
        [completion] = job.run()
        return form.last(job, completion.text, completion.tokens)

    @routes.get("/api/tags")
    def tags() -> Tags:
        return {"models": [_describe(model.require_ready())]}

    @routes.get("/api/ps")
    def running() -> RunningTags:
        loaded = model.require_ready()
        on_gpu = 0 if loaded.device == "CPU" else loaded.weight_bytes
        tag: RunningTag = {
            **_describe(loaded),
            "size": loaded.weight_bytes,
            "expires_at": _NEVER,
            "size_vram": on_gpu,
            "context_length": loaded.engine.context_length,
        }
        return {"models": [tag]}

    @routes.post("/api/show")
    def show() -> Description:
        _, loaded = read_for(model, ShowBody)
        return _show(loaded)

    @routes.get("/api/version")
    def version() -> Version:
        return {"version": _OLLAMA_VERSION}

    def _room(body: OllamaBody, loaded: LoadedModel) -> tuple[int, Fitting]:
        steps = body.options.steps(loaded.engine.context_length, max_steps)
        return steps, Fitting.of(loaded, steps, truncate=body.truncate)

    def _job(
        body: OllamaBody, ids: list[int], steps: int, fitting: Fitting, loaded: LoadedModel
    ) -> Job:
        options, stop_ids = body.options, loaded.tokenizer.stop_ids
        wanted = body.wanted_logprobs
        request = Request(tuple(ids), steps, options.sampling(), stop_ids, top_logprobs=wanted)
        return Job(loaded, [request], as_list(options.stop), metrics, caller(), fitting)

    return routes


def _encode(body: GenerateBody, loaded: LoadedModel, fitting: Fitting) -> list[int]:
    """The prompt's ids: raw, or a turn behind those of `context`."""
    tokenizer = loaded.tokenizer
    try:
        with timed("tokenize"):
            if body.raw:
                _check_raw(body)
                ids = tokenizer.encode(body.prompt)
            else:
                system = [Message("system", body.system)] if body.system else []
                ids = encode_chat(tokenizer, [*system, Message("user", body.prompt)])
        if body.context:
            ids = [*_ended(body.context, loaded), *ids[1:]]
        ids = fitting.ids(ids)
        loaded.engine.check_prompt(len(ids))
    except RequestError as error:
        error.param = error.param or "prompt"
        raise
    return ids


def _check_raw(body: GenerateBody) -> None:
    for name, given in (("system", body.system), ("context", body.context)):
        if given:
            raise InvalidRequest(f"{name}: a raw prompt is all that the model gets", param=name)


def _ended(context: list[int], loaded: LoadedModel) -> list[int]:
    """An earlier answer's `context` with the model's turn closed behind it."""
    tokenizer = loaded.tokenizer
    check_tokens(context, tokenizer.vocab_size, "context")
    return [*context, tokenizer.end_of_turn_id, *tokenizer.encode_literal("\n")]


def _idle(body: OllamaBody) -> Idle:
    """Without a prompt Ollama loads the model, which it is already, or unloads it."""
    if body.keep_alive in (0, "0", "0s"):
        raise InvalidRequest(
            "keep_alive: this server keeps its one model loaded; stop it to free the memory",
            param="keep_alive",
            code="unsupported_field",
        )
    return {**head(body.model), "done": True, "done_reason": "load"}


def _one_line(answer: IdleText | IdleChat) -> Response:
    return Response(line(answer), mimetype=LineWriter.mimetype)


def _describe(loaded: LoadedModel) -> Tag:
    facts = loaded.facts
    return {
        "name": loaded.name,
        "model": loaded.name,
        "modified_at": rfc3339(datetime.fromtimestamp(loaded.ready_at, UTC)),
        "size": facts.file_bytes,
        "digest": facts.digest,
        "details": _details(loaded),
    }


def _details(loaded: LoadedModel) -> Details:
    facts = loaded.facts
    return {
        "parent_model": "",
        "format": facts.format.lower(),
        "family": facts.family,
        "families": [facts.family],
        "parameter_size": f"{facts.parameters / 1e6:,.0f}M",
        "quantization_level": facts.stored_as,
    }


def _show(loaded: LoadedModel) -> Description:
    facts = loaded.facts
    return {
        "details": _details(loaded),
        "model_info": {
            "general.architecture": facts.family,
            "general.parameter_count": facts.parameters,
            f"{facts.family}.context_length": facts.trained_context,
        },
        "capabilities": ["completion"],
        "template": _TEMPLATE,
        "modified_at": rfc3339(datetime.fromtimestamp(loaded.ready_at, UTC)),
    }
