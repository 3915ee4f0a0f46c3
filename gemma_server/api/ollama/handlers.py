"""Ollama's routes: /api/generate, /api/chat, and those that describe models and server.

The wire format follows ollama/ollama's `api/types.go` and ollama/ollama-python's `_types.py`.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from typing_extensions import TypedDict

from gemma_server.api import heavy
from gemma_server.api.caller import Caller
from gemma_server.api.chat import Wanted, encode_messages, require_thinking
from gemma_server.api.constraints import Form
from gemma_server.api.errors import MESSAGE_ALONE, prompt_in
from gemma_server.api.generation import Piece
from gemma_server.api.job import Job
from gemma_server.api.moment import rfc3339
from gemma_server.api.ollama.answers import (
    ChatForm,
    Chatted,
    Generated,
    GenerateForm,
    Idle,
    IdleChat,
    IdleText,
    LineForm,
    MoreChat,
    MoreText,
    head,
    spoken,
    whole,
)
from gemma_server.api.ollama.schema import (
    ChatBody,
    GenerateBody,
    OllamaBody,
    ShowBody,
)
from gemma_server.api.operation import LINES, Answer, Operation, Stream, StreamType
from gemma_server.api.prompts import encode_prompt
from gemma_server.api.schemas import as_list, check_tokens
from gemma_server.api.timing import Stages, timed
from gemma_server.api.tools import declared, reading_of
from gemma_server.api.truncation import Truncation
from gemma_server.engine.request import Request
from gemma_server.errors import InvalidRequest
from gemma_server.serving.model import GenerativeModel, LoadedModel
from gemma_server.serving.models import Models
from gemma_server.serving.served_model import ServedModel
from gemma_server.text.chat import Message
from gemma_server.text.turn_stream import Reading

# The version whose routes these are: clients check for the least they work with (clients/compat).
_OLLAMA_VERSION = "0.17.4"
_LONG_S = 1e9  # seconds; what stays longer does not leave
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
    """A model in a list of models."""

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


def generate(body: GenerateBody, models: Models, caller: Caller) -> Generated | Answer | Stream:
    """Answer a prompt."""
    if not body.prompt:
        idle: IdleText = {**_idle(body, models, caller), "response": ""}
        return _one_line(body, idle)
    loaded = caller.hold(models.resolve, body.model)
    body.keep(models)
    steps, truncation = _room(body, loaded)
    ids = _encode(body, loaded, truncation, caller.stages)
    reading = None if body.raw else Reading()
    wanted = Form(body.asked, thinks=not body.raw and _thinks(body, loaded))
    job = _job(body, ids, steps, truncation, loaded, models, caller, reading, wanted)
    form = GenerateForm(body, loaded, None if body.raw else ids)
    if body.stream:
        return Stream(job, LineForm(form))
    [completion] = job.run()
    return form.last(job, whole(completion))


def chat(body: ChatBody, models: Models, caller: Caller) -> Chatted | Answer | Stream:
    """Answer a chat."""
    if not body.messages:
        idle: IdleChat = {**_idle(body, models, caller), "message": spoken(Piece())}
        return _one_line(body, idle)
    loaded = caller.hold(models.resolve, body.model)
    body.keep(models)
    steps, truncation = _room(body, loaded)
    # As in Ollama's template for Gemma 3: the model continues a last message of its own.
    last = body.messages[-1]
    goes_on = last.role == "assistant" and not last.tool_calls
    wanted = Wanted(declared(loaded, body.tools), _thinks(body, loaded), goes_on)
    ids = encode_messages(loaded, body.messages, wanted, truncation, caller.stages)
    reading = reading_of(loaded, wanted.tools)
    answer = Form(body.asked, wanted.tools, thinks=wanted.thinks)
    job = _job(body, ids, steps, truncation, loaded, models, caller, reading, answer)
    form = ChatForm(body, loaded)
    if body.stream:
        return Stream(job, LineForm(form))
    [completion] = job.run()
    return form.last(job, whole(completion))


def tags(body: None, models: Models, caller: Caller) -> Tags:
    """All models that answer requests."""
    return {
        "models": [
            _absent(model) if loaded is None else _describe(loaded)
            for model, loaded in models.known()
        ]
    }


def running(body: None, models: Models, caller: Caller) -> RunningTags:
    """All models in memory."""
    return {
        "models": [
            _running(loaded, models.expires_in(loaded.name))
            for _, loaded in models.known()
            if loaded is not None
        ]
    }


def show(body: ShowBody, models: Models, caller: Caller) -> Description:
    """Describe a model."""
    return _show(caller.hold(models.resolve_any, body.model))


def version(body: None, models: Models, caller: Caller) -> Version:
    """The version of Ollama whose routes these are."""
    return {"version": _OLLAMA_VERSION}


def _room(body: OllamaBody, loaded: GenerativeModel) -> tuple[int, Truncation]:
    steps = body.options.steps(loaded.engine.context_length, loaded.max_steps)
    return steps, Truncation.of(loaded, steps, truncate=body.truncate)


def _job(
    body: OllamaBody,
    ids: list[int],
    steps: int,
    truncation: Truncation,
    loaded: GenerativeModel,
    models: Models,
    caller: Caller,
    reading: Reading | None,
    form: Form,
) -> Job:
    how = body.options.sampling(loaded.sampling)
    stop_ids, wanted = loaded.tokenizer.stop_ids, body.wanted_logprobs
    [constraint] = form.start(loaded, ids, 1)
    request = Request(tuple(ids), steps, how, stop_ids, top_logprobs=wanted, constraint=constraint)
    stops = [as_list(body.options.stop)]
    return Job(loaded, [request], stops, models.metrics, caller, truncation, reading=reading)


def _thinks(body: OllamaBody, loaded: GenerativeModel) -> bool:
    """Whether the model is to think: as in Ollama, one that can does, unless told not to."""
    if body.think:
        require_thinking(loaded, "think")
    return loaded.chat.takes_thinking if body.think is None else body.think is not False


def _encode(
    body: GenerateBody, loaded: GenerativeModel, truncation: Truncation, stages: Stages
) -> list[int]:
    """The prompt's ids: raw, or as a turn after the ids of `context`."""
    with timed(stages, "tokenize"), prompt_in("prompt"):
        if body.raw:
            _check_raw(body)
            return encode_prompt(loaded, body.prompt, truncation)
        system = [Message("system", body.system)] if body.system else []
        if truncation.room is None:
            loaded.refuse_what_cannot_fit([body.system, body.prompt])
        messages = [*system, Message("user", body.prompt)]
        size = len(body.system) + len(body.prompt)
        thinks = _thinks(body, loaded)
        ids = heavy.run(size, lambda: loaded.chat.encode(messages, thinks=thinks))
        if body.context:
            ids = [*_ended(body.context, loaded), *ids[1:]]
        ids = truncation.ids(ids)
        loaded.engine.check_prompt(len(ids))
    return ids


def _check_raw(body: GenerateBody) -> None:
    for name, given in (("system", body.system), ("context", body.context)):
        if given:
            raise InvalidRequest(f"{name}: a raw prompt is all that the model gets", param=name)


def _ended(context: list[int], loaded: GenerativeModel) -> list[int]:
    """An earlier answer's `context`, with the model's turn closed."""
    check_tokens(context, loaded.tokenizer.vocab_size, "context")
    return [*context, *loaded.chat.ids_after_answer()]


def _idle(body: OllamaBody, models: Models, caller: Caller) -> Idle:
    """The answer to a request without a prompt, which loads the model or unloads it."""
    if body.unload(models):
        return {**head(body.model), "done": True, "done_reason": "unload"}
    caller.hold(models.resolve, body.model)
    body.keep(models)
    return {**head(body.model), "done": True, "done_reason": "load"}


def _one_line(body: OllamaBody, answer: IdleText | IdleChat) -> Answer:
    """An answer that is a single line, streamed or not."""
    return Answer(answer, content_type=LINES if body.stream else None)


def _running(loaded: LoadedModel, expires_s: float) -> RunningTag:
    """`expires_s`: seconds until it leaves memory."""
    leaves = datetime.now(UTC) + timedelta(seconds=min(expires_s, _LONG_S))
    return {
        **_describe(loaded),
        "size": loaded.weight_bytes,
        "expires_at": rfc3339(leaves) if expires_s < _LONG_S else _NEVER,
        "size_vram": 0 if loaded.device == "CPU" else loaded.weight_bytes,
        "context_length": loaded.context_length,
    }


def _absent(model: ServedModel) -> Tag:
    """A model that is loaded when it is asked for: nobody has opened its files."""
    name, modified = model.public_name, datetime.fromtimestamp(model.since, UTC)
    details: Details = {
        "parent_model": "",
        "format": "",
        "family": "",
        "families": [],
        "parameter_size": "",
        "quantization_level": "",
    }
    return {
        "name": name,
        "model": name,
        "modified_at": rfc3339(modified),
        "size": 0,
        "digest": "",
        "details": details,
    }


def _describe(loaded: LoadedModel) -> Tag:
    info = loaded.info
    return {
        "name": loaded.name,
        "model": loaded.name,
        "modified_at": rfc3339(datetime.fromtimestamp(loaded.ready_at, UTC)),
        "size": info.file_bytes,
        "digest": info.digest,
        "details": _details(loaded),
    }


def _details(loaded: LoadedModel) -> Details:
    info = loaded.info
    return {
        "parent_model": "",
        "format": info.format.lower(),
        "family": info.family,
        "families": [info.family],
        "parameter_size": f"{info.parameters / 1e6:,.0f}M",
        "quantization_level": info.stored_as,
    }


def _show(loaded: LoadedModel) -> Description:
    info = loaded.info
    return {
        "details": _details(loaded),
        "model_info": {
            "general.architecture": info.family,
            "general.parameter_count": info.parameters,
            f"{info.family}.context_length": info.trained_context,
        },
        "capabilities": _capabilities(loaded),
        "template": _template(loaded),
        "modified_at": rfc3339(datetime.fromtimestamp(loaded.ready_at, UTC)),
    }


def _template(loaded: LoadedModel) -> str:
    """The chat template, nearly, in Go's language; thoughts and tools are not in it."""
    if not isinstance(loaded, GenerativeModel):
        return ""
    family = loaded.tokenizer.family
    with_begin = _TEMPLATE.replace("<start_of_turn>", family.start_of_turn)
    return with_begin.replace("<end_of_turn>", family.end_of_turn)


def _capabilities(loaded: LoadedModel) -> list[str]:
    if not isinstance(loaded, GenerativeModel):
        return ["embedding"]
    tools = ["tools"] if loaded.chat.takes_tools else []
    thinking = ["thinking"] if loaded.chat.takes_thinking else []
    return ["completion", *tools, *thinking]


OPERATIONS: tuple[Operation[Any], ...] = (
    Operation(
        "ollama_generate",
        "Answer a prompt",
        generate,
        path="/api/generate",
        body=GenerateBody,
        answer=Generated,
        stream=StreamType(LINES, MoreText | Generated),
        error_form=MESSAGE_ALONE,
    ),
    Operation(
        "ollama_chat",
        "Answer a chat",
        chat,
        path="/api/chat",
        body=ChatBody,
        answer=Chatted,
        stream=StreamType(LINES, MoreChat | Chatted),
        error_form=MESSAGE_ALONE,
    ),
    Operation(
        "ollama_show",
        "What the model is",
        show,
        path="/api/show",
        body=ShowBody,
        answer=Description,
        error_form=MESSAGE_ALONE,
    ),
    Operation(
        "ollama_tags",
        "List the model",
        tags,
        method="GET",
        path="/api/tags",
        answer=Tags,
        error_form=MESSAGE_ALONE,
    ),
    Operation(
        "ollama_ps",
        "List the model in memory",
        running,
        method="GET",
        path="/api/ps",
        answer=RunningTags,
        error_form=MESSAGE_ALONE,
    ),
    Operation(
        "ollama_version",
        "The Ollama whose routes these are",
        version,
        method="GET",
        path="/api/version",
        answer=Version,
        error_form=MESSAGE_ALONE,
    ),
)
