"""Ollama's routes: /api/generate, /api/chat, and those that tell what is there.

The wire as ollama/ollama's `api/types.go` and ollama/ollama-python's `_types.py` have it.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response, json

from gemma_server import __version__
from gemma_server.engine.request import Request
from gemma_server.errors import InvalidRequest, RequestError
from gemma_server.generation import Completion, Piece
from gemma_server.served import LoadedModel, ServedModel
from gemma_server.text.chat import Message, encode_chat
from gemma_server.web.body import read_body
from gemma_server.web.errors import body_of
from gemma_server.web.job import Job
from gemma_server.web.messages import encode_messages
from gemma_server.web.metrics import Metrics
from gemma_server.web.ollama_schema import ChatBody, GenerateBody, OllamaBody, ShowBody
from gemma_server.web.schema import as_list
from gemma_server.web.streaming import stream
from gemma_server.web.timing import timed

_NEVER = "9999-12-31T23:59:59Z"
_TEMPLATE = (
    "{{ range .Messages }}<start_of_turn>{{ .Role }}\n{{ .Content }}<end_of_turn>\n{{ end }}"
    "<start_of_turn>model\n"
)


def blueprint(model: ServedModel, metrics: Metrics, max_steps: int | None) -> Blueprint:
    """The routes for one model."""
    routes = Blueprint("ollama", __name__)

    @routes.post("/api/generate")
    def generate() -> Response | dict[str, Any]:
        model.require_ready()
        body = read_body(GenerateBody)
        loaded = model.find(body.model)
        if not body.prompt:
            return _only_load(body, {"response": ""})
        ids = _encode(body, loaded)
        return _respond(body, Generated(body.model, None if body.raw else ids), ids, loaded)

    @routes.post("/api/chat")
    def chat() -> Response | dict[str, Any]:
        model.require_ready()
        body = read_body(ChatBody)
        loaded = model.find(body.model)
        if not body.messages:
            return _only_load(body, {"message": {"role": "assistant", "content": ""}})
        return _respond(body, Said(body.model), encode_messages(loaded, body.messages), loaded)

    @routes.get("/api/tags")
    def tags() -> dict[str, Any]:
        return {"models": [_describe(model.require_ready())]}

    @routes.get("/api/ps")
    def running() -> dict[str, Any]:
        loaded = model.require_ready()
        on_gpu = 0 if loaded.device == "CPU" else loaded.weight_bytes
        length = loaded.engine.context_length
        more = {"expires_at": _NEVER, "size_vram": on_gpu, "context_length": length}
        return {"models": [{**_describe(loaded), "size": loaded.weight_bytes, **more}]}

    @routes.post("/api/show")
    def show() -> dict[str, Any]:
        model.require_ready()
        body = read_body(ShowBody)
        return _show(model.find(body.model or body.name))

    @routes.get("/api/version")
    def version() -> dict[str, str]:
        return {"version": __version__}

    def _respond(
        body: OllamaBody, form: "Generated | Said", ids: list[int], loaded: LoadedModel
    ) -> Response | dict[str, Any]:
        options = body.options
        steps = options.steps(loaded.engine.context_length, max_steps)
        stops = loaded.tokenizer.stop_ids
        request = Request(tuple(ids), steps, options.sampling(), stops)
        job = Job(loaded, [request], as_list(options.stop), metrics)
        if body.stream:
            return stream(job, LineWriter(form))
        [completion] = job.run()
        return form.last(job, completion, completion.text)

    return routes


def _encode(body: GenerateBody, loaded: LoadedModel) -> list[int]:
    """The prompt's ids: raw, or a turn behind those of `context`."""
    tokenizer = loaded.tokenizer
    try:
        with timed("tokenize"):
            if body.raw:
                ids = tokenizer.encode(body.prompt)
            else:
                system = [Message("system", body.system)] if body.system else []
                ids = encode_chat(tokenizer, [*system, Message("user", body.prompt)])
        if body.context:
            ids = [*_ended(body.context, loaded), *ids[1:]]
        loaded.engine.check_prompt(len(ids))
    except RequestError as error:
        error.param = error.param or "prompt"
        raise
    return ids


def _ended(context: list[int], loaded: LoadedModel) -> list[int]:
    """An earlier answer's `context` with the model's turn closed behind it."""
    tokenizer = loaded.tokenizer
    if not all(0 <= index < tokenizer.vocab_size for index in context):
        raise InvalidRequest("context: not what an earlier answer gave", param="context")
    return [*context, tokenizer.end_of_turn_id, *tokenizer.encode_literal("\n")]


def _only_load(body: OllamaBody, content: dict[str, Any]) -> Response | dict[str, Any]:
    """Without a prompt Ollama loads the model, which it is already, or unloads it."""
    if body.keep_alive in (0, "0", "0s"):
        raise InvalidRequest(
            "keep_alive: this server keeps its one model loaded; stop it to free the memory",
            param="keep_alive",
            code="unsupported_field",
        )
    answer = {**_head(body.model), **content, "done": True, "done_reason": "load"}
    if not body.stream:
        return answer
    return Response(_line(answer), mimetype=LineWriter.mimetype)


def _head(name: str) -> dict[str, Any]:
    return {"model": name, "created_at": _rfc3339(datetime.now(UTC))}


def _rfc3339(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"


def _describe(loaded: LoadedModel) -> dict[str, Any]:
    facts = loaded.facts
    return {
        "name": loaded.name,
        "model": loaded.name,
        "modified_at": _rfc3339(datetime.fromtimestamp(loaded.ready_at, UTC)),
        "size": facts.file_bytes,
        "digest": facts.digest,
        "details": _details(loaded),
    }


def _details(loaded: LoadedModel) -> dict[str, Any]:
    facts = loaded.facts
    return {
        "parent_model": "",
        "format": facts.format.lower(),
        "family": facts.family,
        "families": [facts.family],
        "parameter_size": f"{facts.parameters / 1e6:,.0f}M",
        "quantization_level": facts.stored_as,
    }


def _show(loaded: LoadedModel) -> dict[str, Any]:
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
        "modified_at": _rfc3339(datetime.fromtimestamp(loaded.ready_at, UTC)),
    }


class Generated:
    """Answers of /api/generate. The last has the `context` to go on from, unless it is raw."""

    def __init__(self, model: str, prompt_ids: list[int] | None) -> None:
        self._model, self._prompt_ids = model, prompt_ids

    def part(self, text: str) -> dict[str, Any]:
        """More text, and more to come."""
        return {**_head(self._model), "response": text, "done": False}

    def last(self, job: Job, completion: Completion, text: str = "") -> dict[str, Any]:
        """The end, with the whole text where nothing was streamed."""
        context = {}
        if self._prompt_ids is not None:
            context = {"context": self._prompt_ids + [token.id for token in completion.tokens]}
        return {**self.part(text), **_ending(job, completion), **context}


class Said:
    """Answers of /api/chat."""

    def __init__(self, model: str) -> None:
        self._model = model

    def part(self, text: str) -> dict[str, Any]:
        """More text, and more to come."""
        message = {"role": "assistant", "content": text}
        return {**_head(self._model), "message": message, "done": False}

    def last(self, job: Job, completion: Completion, text: str = "") -> dict[str, Any]:
        """The end, with the whole text where nothing was streamed."""
        return {**self.part(text), **_ending(job, completion)}


def _ending(job: Job, completion: Completion) -> dict[str, Any]:
    """Ollama's counts, and its durations in nanoseconds."""
    timings = job.timings()
    durations = {name: round(ms * 1e6) for name, ms in timings.items()}
    return {
        "done": True,
        "done_reason": completion.finish_reason,
        "total_duration": sum(durations.values()),
        "load_duration": 0,
        "prompt_eval_count": completion.prompt_tokens,
        "prompt_eval_duration": durations["prefill_ms"],
        "eval_count": completion.completion_tokens,
        "eval_duration": durations["decode_ms"],
        "timings": timings,
    }


class LineWriter:
    """One JSON object a line, without blank lines: Ollama's clients parse every one."""

    mimetype = "application/x-ndjson"

    def __init__(self, form: Generated | Said) -> None:
        self._form = form

    def piece(self, index: int, piece: Piece) -> bytes:
        """More text."""
        return _line(self._form.part(piece.text)) if piece.text else b""

    def ping(self) -> bytes:
        """Text without a character: there are no comments in JSON."""
        return _line(self._form.part(""))

    def end(self, job: Job) -> Iterator[bytes]:
        """The last object."""
        [completion] = job.completions
        yield _line(self._form.last(job, completion))

    def failure(self, error: RequestError) -> bytes:
        """The error as any answer has it."""
        return _line(body_of(error))
