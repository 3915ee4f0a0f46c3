"""The api's operations over frames: the same bodies, handlers and answers as over HTTP."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict

from gemma_server.api.caller import Caller
from gemma_server.api.document import check
from gemma_server.api.native.handlers import prompt
from gemma_server.api.native.schema import PromptBody
from gemma_server.api.operation import Answer, Operation, Stream
from gemma_server.api.operations import OPERATIONS
from gemma_server.api.timing import timed
from gemma_server.errors import InvalidRequest
from gemma_server.frames.codec import FINISHED, PIECE
from gemma_server.frames.service import Op, Part
from gemma_server.serving.models import Models


class _Nothing(BaseModel):
    """The fields of an operation that has none."""

    model_config = ConfigDict(extra="forbid")


class OperationService:
    """A `Service` of every operation that has a name over frames."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self.ops: Mapping[str, Op] = {
            operation.frame: partial(self._answer, operation)
            for operation in OPERATIONS
            if operation.frame is not None
        }

    def raw(self, body: bytes, caller: Caller) -> bytes:
        """The answer to a prompt, both as UTF-8.

        Raises:
            RequestError, Disconnected: there is no answer.
        """
        try:
            text = body.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"the prompt: byte {error.start} is not UTF-8") from None
        answer = prompt(check(PromptBody, {"prompt": text}), self._models, caller)
        assert not isinstance(answer, Stream)
        return str(answer["response"]).encode("utf-8", errors="replace")

    def answered(self, op: str, status: int) -> None:
        """Count the answer in the metrics."""
        self._models.metrics.answered_frame(op, status)

    def _answer(
        self, operation: Operation[Any], fields: dict[str, Any], caller: Caller
    ) -> Iterator[Part]:
        with timed(caller.stages, "parse"):
            body = check(operation.body or _Nothing, fields)
        answer = operation.handle(body if operation.body else None, self._models, caller)
        if isinstance(answer, Stream):
            yield from _streamed(answer)
        elif isinstance(answer, Answer):
            assert isinstance(answer.content, Mapping)
            yield FINISHED, answer.content
        else:
            yield FINISHED, answer


def _streamed(answer: Stream) -> Iterator[Part]:
    """The parts, the last of which ends the answer; a Unix socket needs no keepalive."""
    for index, piece in answer.job.pieces():
        if not piece.is_keepalive:
            yield from ((PIECE, part) for part in answer.form.parts(index, piece))
    *parts, last = answer.form.end(answer.job)
    yield from ((PIECE, part) for part in parts)
    yield FINISHED, last
