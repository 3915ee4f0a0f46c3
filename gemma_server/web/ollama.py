"""Ollama's routes: /api/generate, /api/chat, and those that tell what is there.

The wire as ollama/ollama's `api/types.go` and ollama/ollama-python's `_types.py` have it.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response, json

from gemma_server import __version__
from gemma_server.engine.request import Request, Token
from gemma_server.errors import InvalidRequest, RequestError
from gemma_server.generation import Completion, Piece
from gemma_server.served import LoadedModel, ServedModel
from gemma_server.text.chat import Message, encode_chat
from gemma_server.web.body import read_body
from gemma_server.web.errors import body_of
from gemma_server.web.fitting import Fitting
from gemma_server.web.job import Job
from gemma_server.web.logprobs import entries
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
        steps, fitting = _room(body, loaded)
        ids = _encode(body, loaded, fitting)
        form = Generated(body, loaded, None if body.raw else ids)
        return _respond(body, form, _job(body, ids, steps, fitting, loaded))

    @routes.post("/api/chat")
    def chat() -> Response | dict[str, Any]:
        model.require_ready()
        body = read_body(ChatBody)
        loaded = model.find(body.model)
        if not body.messages:
            return _only_load(body, {"message": {"role": "assistant", "content": ""}})
        steps, fitting = _room(body, loaded)
        ids = encode_messages(loaded, body.messages, fitting)
        return _respond(body, Said(body, loaded), _job(body, ids, steps, fitting, loaded))

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

    def _room(body: OllamaBody, loaded: LoadedModel) -> tuple[int, Fitting]:
        steps = body.options.steps(loaded.engine.context_length, max_steps)
        return steps, Fitting.of(loaded, steps, truncate=body.truncate)

    def _job(
        body: OllamaBody, ids: list[int], steps: int, fitting: Fitting, loaded: LoadedModel
    ) -> Job:
        options, stop_ids = body.options, loaded.tokenizer.stop_ids
        wanted = body.wanted_logprobs
        request = Request(tuple(ids), steps, options.sampling(), stop_ids, top_logprobs=wanted)
        return Job(loaded, [request], as_list(options.stop), metrics, fitting)

    return routes


def _respond(body: OllamaBody, form: "Generated | Said", job: Job) -> Response | dict[str, Any]:
    if body.stream:
        return stream(job, LineWriter(form))
    [completion] = job.run()
    return form.last(job, completion, whole=True)


def _encode(body: GenerateBody, loaded: LoadedModel, fitting: Fitting) -> list[int]:
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
        ids = fitting.ids(ids)
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


class _Form:
    """What all parts of one answer share."""

    def __init__(self, body: OllamaBody, loaded: LoadedModel) -> None:
        self._model, self._tokenizer = body.model, loaded.tokenizer
        self._with_logprobs = body.logprobs

    def part(self, text: str, tokens: Sequence[Token] = ()) -> dict[str, Any]:
        """More text, and more to come."""
        found = {"logprobs": entries(self._tokenizer, tokens)} if self._with_logprobs else {}
        return {**_head(self._model), **self.content(text), "done": False, **found}

    def content(self, text: str) -> dict[str, Any]:
        """How the text is put."""
        raise NotImplementedError

    def last(self, job: Job, completion: Completion, *, whole: bool = False) -> dict[str, Any]:
        """The end, with the whole text where nothing was streamed."""
        part = self.part(completion.text, completion.tokens) if whole else self.part("")
        return {**part, **_ending(job, completion)}


class Generated(_Form):
    """Answers of /api/generate. The last has the `context` to go on from, unless it is raw."""

    def __init__(self, body: OllamaBody, loaded: LoadedModel, prompt_ids: list[int] | None) -> None:
        super().__init__(body, loaded)
        self._prompt_ids = prompt_ids

    def content(self, text: str) -> dict[str, Any]:
        """How the text is put."""
        return {"response": text}

    def last(self, job: Job, completion: Completion, *, whole: bool = False) -> dict[str, Any]:
        """The end, with the whole text where nothing was streamed."""
        last = super().last(job, completion, whole=whole)
        if self._prompt_ids is not None:
            last["context"] = self._prompt_ids + [token.id for token in completion.tokens]
        return last


class Said(_Form):
    """Answers of /api/chat."""

    def content(self, text: str) -> dict[str, Any]:
        """How the text is put."""
        return {"message": {"role": "assistant", "content": text}}


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
        **job.costs(),
    }


class LineWriter:
    """One JSON object a line, without blank lines: Ollama's clients parse every one."""

    mimetype = "application/x-ndjson"

    def __init__(self, form: Generated | Said) -> None:
        self._form = form

    def piece(self, index: int, piece: Piece) -> bytes:
        """More text."""
        return _line(self._form.part(piece.text, piece.tokens))

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
