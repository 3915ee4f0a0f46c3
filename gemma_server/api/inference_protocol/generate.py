"""Triton's generate extension: a text is continued, whole or as server-sent events.

The wire format follows triton-inference-server/server's `docs/protocol/extension_generate.md`, and
kserve/open-inference-protocol's `specification/protocol/generate_rest.yaml`, which adds `done`.
"""

from collections.abc import Iterator
from typing import Any, NotRequired

from typing_extensions import TypedDict

from gemma_server.api.caller import Caller
from gemma_server.api.errors import MESSAGE_ALONE
from gemma_server.api.generation import Completion, Piece
from gemma_server.api.inference_protocol.parameters import Parameters
from gemma_server.api.inference_protocol.paths import for_each_version
from gemma_server.api.job import Job
from gemma_server.api.native.handlers import begin
from gemma_server.api.operation import EVENTS, Operation, Stream, StreamType
from gemma_server.api.schemas import PromptText
from gemma_server.engine.request import FinishReason
from gemma_server.errors import InvalidRequest
from gemma_server.serving.models import Models


class GenerateTextBody(Parameters):
    """POST /v2/models/NAME/generate and /generate_stream. Triton takes options beside
    `parameters`, too."""

    text_input: PromptText
    id: str = ""
    parameters: Parameters = Parameters()

    @property
    def options(self) -> Parameters:
        """All of them.

        Raises:
            InvalidRequest: one is there twice.
        """
        beside = self.model_fields_set & set(Parameters.model_fields)
        if twice := sorted(beside & self.parameters.model_fields_set):
            message = f"parameters.{twice[0]}: {twice[0]} is beside parameters, too"
            raise InvalidRequest(message, param=f"parameters.{twice[0]}")
        return self.parameters.model_copy(update={name: getattr(self, name) for name in beside})


class Generated(TypedDict):
    """The answer, or a part of a stream."""

    id: NotRequired[str]  # of the request
    model_name: str
    model_version: str  # a whole number
    text_output: str
    done: NotRequired[bool]  # in a stream: whether this is the last part
    finish_reason: NotRequired[FinishReason]  # of the whole answer, as are those below
    num_input_tokens: NotRequired[int]
    num_output_tokens: NotRequired[int]


def generate(body: GenerateTextBody, models: Models, caller: Caller) -> Generated:
    """Continue a text, and answer when it is complete."""
    options = body.options
    options.refuse_to_stream()
    job = _begin(body, options, models, caller)
    [completion] = job.run()
    text = options.text_output(body.text_input, completion.text)
    return _ended(_part(body, job, text), completion)


def generate_stream(body: GenerateTextBody, models: Models, caller: Caller) -> Stream:
    """Continue a text, as it comes."""
    options = body.options
    if options.stream is not False and not options.exclude_input_in_output:
        name = "exclude_input_in_output"
        raise InvalidRequest(f"{name}: false cannot be streamed", param=name)
    job = _begin(body, options, models, caller)
    return Stream(job, GenerateForm(body, options, job))


class GenerateForm:
    """Parts of text, then one that says how it ended; it has all of the text, and is alone, if
    `stream` is false."""

    def __init__(self, body: GenerateTextBody, options: Parameters, job: Job) -> None:
        self._body, self._options, self._job = body, options, job

    def parts(self, index: int, piece: Piece) -> Iterator[Generated]:
        """More text."""
        if piece.text and self._options.stream is not False:
            yield {**_part(self._body, self._job, piece.text), "done": False}

    def keepalive(self) -> None:
        """No part: the transport has a keepalive of its own, if it needs one."""

    def end(self, job: Job) -> Iterator[Generated]:
        """How it ended."""
        [completion] = job.completions
        text = ""
        if self._options.stream is False:
            text = self._options.text_output(self._body.text_input, completion.text)
        yield {**_ended(_part(self._body, job, text), completion), "done": True}


def _begin(body: GenerateTextBody, options: Parameters, models: Models, caller: Caller) -> Job:
    loaded = caller.hold(models.resolve, caller.asked)
    return begin([({"text_input": body.text_input}, options)], loaded, models, caller)


def _part(body: GenerateTextBody, job: Job, text: str) -> Generated:
    part: Generated = {
        "model_name": job.loaded.name,
        "model_version": str(job.loaded.version),
        "text_output": text,
    }
    return {"id": body.id, **part} if body.id else part


def _ended(part: Generated, completion: Completion) -> Generated:
    """The part, and how the whole answer ended."""
    return {
        **part,
        "finish_reason": completion.finish_reason,
        "num_input_tokens": completion.prompt_tokens,
        "num_output_tokens": completion.completion_tokens,
    }


OPERATIONS: tuple[Operation[Any], ...] = (
    *for_each_version(
        lambda suffix, path: Operation(
            f"generate{suffix}",
            "Continue a text, as Triton's generate extension has it",
            generate,
            path=f"{path}/generate",
            body=GenerateTextBody,
            answer=Generated,
            waits=True,
            error_form=MESSAGE_ALONE,
        )
    ),
    *for_each_version(
        lambda suffix, path: Operation(
            f"generate_stream{suffix}",
            "Continue a text as server-sent events, as Triton's generate extension has it",
            generate_stream,
            path=f"{path}/generate_stream",
            body=GenerateTextBody,
            stream=StreamType(EVENTS, Generated, says_done=False),
            error_form=MESSAGE_ALONE,
        )
    ),
)
