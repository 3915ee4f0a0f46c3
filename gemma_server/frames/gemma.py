"""What frames mean to a Gemma model: the same as HTTP's bodies."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypedDict

from gemma_server.api.document import check
from gemma_server.api.job import Caller, Job, Usage
from gemma_server.api.logprobs import TextLogprobs, TextOffsets
from gemma_server.api.native.prompt import last_part, prompt_job, whole_answer
from gemma_server.api.openai.tokens import TokenizeBody, token_ids
from gemma_server.api.schemas import ModelBody, PromptBody, PromptText, TopLogprobs
from gemma_server.api.timing import timed
from gemma_server.engine.request import Request
from gemma_server.errors import InvalidRequest
from gemma_server.frames.codec import FINISHED, PIECE
from gemma_server.frames.service import Op, Part
from gemma_server.serving.metrics import Metrics
from gemma_server.serving.model import ServedModel


class ScoreBody(ModelBody):
    """How likely the model finds a text."""

    model_config = ConfigDict(extra="forbid")

    prompt: PromptText
    top_logprobs: TopLogprobs = 0


class Scores(TypedDict):
    """Its answer."""

    logprobs: TextLogprobs
    usage: Usage
    timings: dict[str, float]  # milliseconds of each stage


class _Nothing(BaseModel):
    model_config = ConfigDict(extra="forbid")


class GemmaService:
    """A `Service` around one model, which may still be loading."""

    def __init__(self, model: ServedModel, metrics: Metrics, max_steps: int | None) -> None:
        self._model, self._metrics, self._max_steps = model, metrics, max_steps
        self.ops: Mapping[str, Op] = {
            "generate": self._generate,
            "score": self._score,
            "tokenize": self._tokenize,
            "ready": self._ready,
        }

    def raw(self, body: bytes, caller: Caller) -> bytes:
        """A prompt's answer, both as UTF-8.

        Raises:
            RequestError, ClientGone: there is none.
        """
        try:
            prompt = body.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"the prompt: byte {error.start} is not UTF-8") from None
        job = self._prompt_job(check(PromptBody, {"prompt": prompt}), caller)
        [completion] = job.run()
        return completion.text.encode("utf-8", errors="replace")

    def answered(self, op: str, status: int) -> None:
        """Count it."""
        self._metrics.answered_frame(op, status)

    def _generate(self, fields: dict[str, Any], caller: Caller) -> Iterator[Part]:
        with timed(caller.stages, "parse"):
            body = check(PromptBody, fields)
        job = self._prompt_job(body, caller)
        if not body.stream:
            yield FINISHED, whole_answer(body, job)
            return
        for _, piece in job.pieces():
            if piece.text:
                yield PIECE, {"response": piece.text}
        yield FINISHED, last_part(job)

    def _prompt_job(self, body: PromptBody, caller: Caller) -> Job:
        loaded = self._model.find(body.model)
        return prompt_job(body, loaded, self._max_steps, self._metrics, caller)

    def _score(self, fields: dict[str, Any], caller: Caller) -> Iterator[Part]:
        body = check(ScoreBody, fields)
        loaded = self._model.find(body.model)
        with timed(caller.stages, "tokenize"):
            ids = tuple(loaded.tokenizer.encode(body.prompt))
        loaded.engine.check_prompt(len(ids))
        request = Request(ids, 0, top_logprobs=body.top_logprobs, prompt_logprobs=True)
        job = Job(loaded, [request], (), self._metrics, caller)
        [completion] = job.run()
        scored = zip(ids, (None, *completion.prompt_logprobs), strict=True)
        answer: Scores = {
            "logprobs": TextOffsets(loaded.tokenizer).lists(list(scored)),
            "usage": job.usage(),
            "timings": job.timings(),
        }
        yield FINISHED, answer

    def _tokenize(self, fields: dict[str, Any], caller: Caller) -> Iterator[Part]:
        body = check(TokenizeBody, fields)
        yield FINISHED, token_ids(body, self._model.find(body.model))

    def _ready(self, fields: dict[str, Any], caller: Caller) -> Iterator[Part]:
        check(_Nothing, fields)
        yield FINISHED, self._model.readiness()
