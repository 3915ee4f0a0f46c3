"""The answers of Ollama's generating routes, whole and line by line."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from gemma_server.api.generation import Completion, Piece
from gemma_server.api.job import Costs, Job
from gemma_server.api.logprobs import TokenLogprob, entries
from gemma_server.api.moment import rfc3339
from gemma_server.api.ollama.schema import OllamaBody
from gemma_server.api.operation import Document
from gemma_server.api.tools import new_call_id
from gemma_server.engine.request import FinishReason, Token
from gemma_server.serving.model import LoadedModel


class Head(TypedDict):
    """What all lines of one answer share."""

    model: str  # as the client named it
    created_at: str


class Scores(TypedDict, total=False):
    """Logprobs of the line's tokens, if wanted."""

    logprobs: list[TokenLogprob]


class More(Head, Scores):
    """A line before the last."""

    done: Literal[False]


class Durations(TypedDict):
    """All the time, and that before the model began, in nanoseconds."""

    total_duration: int
    load_duration: int


class End(Head, Scores, Durations, Costs):
    """The last line: Ollama's counts, and its durations in nanoseconds."""

    done: Literal[True]
    done_reason: FinishReason
    prompt_eval_count: int
    prompt_eval_duration: int
    eval_count: int
    eval_duration: int


class Idle(Head):
    """The answer to a request to load the model, or to unload it."""

    done: Literal[True]
    done_reason: Literal["load", "unload"]


class Thoughts(TypedDict, total=False):
    """What the model thinks, if it does."""

    thinking: str


class MoreText(More, Thoughts):
    """A line of /api/generate."""

    response: str


class GeneratedText(End, Thoughts):
    """The end of /api/generate, with the whole text if it was not streamed."""

    response: str


class ContinuableText(GeneratedText):
    """The end of /api/generate with the ids of prompt and answer, for a prompt that is not raw."""

    context: list[int]


class IdleText(Idle):
    """/api/generate without a prompt."""

    response: str


class CalledFunction(TypedDict):
    """What the model calls, and which of the answer's calls it is."""

    index: int
    name: str
    arguments: Mapping[str, Any]


class OllamaCall(TypedDict):
    """A call."""

    id: str
    function: CalledFunction


class OllamaMessage(Thoughts):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    tool_calls: NotRequired[list[OllamaCall]]


class MoreChat(More):
    """A line of /api/chat."""

    message: OllamaMessage


class ChatEnd(End):
    """The end of /api/chat, with the whole message if it was not streamed."""

    message: OllamaMessage


class IdleChat(Idle):
    """/api/chat without messages."""

    message: OllamaMessage


Generated = ContinuableText | GeneratedText | IdleText
Chatted = ChatEnd | IdleChat


_BEFORE = ("parse_ms", "tokenize_ms", "queue_ms")


def nanoseconds(timings: Mapping[str, float]) -> dict[str, int]:
    """The time of each stage, of which `timings` has the milliseconds."""
    return {stage: round(ms * 1e6) for stage, ms in timings.items()}


def durations(spent: Mapping[str, int]) -> Durations:
    """Ollama's sums of the nanoseconds of each stage."""
    before = sum(spent.get(stage, 0) for stage in _BEFORE)
    return {"total_duration": sum(spent.values()), "load_duration": before}


class _Form:
    """What /api/generate and /api/chat share."""

    def __init__(self, body: OllamaBody, loaded: LoadedModel) -> None:
        self._body, self._tokenizer = body, loaded.tokenizer

    def _more(self, tokens: Sequence[Token]) -> More:
        return {**head(self._body.model), "done": False, **self._scores(tokens)}

    def _end(self, job: Job, tokens: Sequence[Token]) -> End:
        costs, [completion] = job.costs(), job.completions
        spent = nanoseconds(costs["timings"])
        return {
            **head(self._body.model),
            "done": True,
            "done_reason": completion.finish_reason,
            **durations(spent),
            "prompt_eval_count": completion.prompt_tokens,
            "prompt_eval_duration": spent["prefill_ms"],
            "eval_count": completion.completion_tokens,
            "eval_duration": spent["decode_ms"],
            **self._scores(tokens),
            **costs,
        }

    def _scores(self, tokens: Sequence[Token]) -> Scores:
        return {"logprobs": entries(self._tokenizer, tokens)} if self._body.logprobs else {}


class GenerateForm(_Form):
    """Answers of /api/generate."""

    def __init__(self, body: OllamaBody, loaded: LoadedModel, prompt_ids: list[int] | None) -> None:
        super().__init__(body, loaded)
        self._prompt_ids = prompt_ids

    def more(self, piece: Piece) -> MoreText:
        """More text, and more to come."""
        return {**self._more(piece.tokens), "response": piece.text, **_thoughts(piece)}

    def last(self, job: Job, piece: Piece) -> GeneratedText | ContinuableText:
        """The end, with all of the text where nothing was streamed."""
        answer: GeneratedText = {
            **self._end(job, piece.tokens),
            "response": piece.text,
            **_thoughts(piece),
        }
        if self._prompt_ids is None:
            return answer
        [completion] = job.completions
        return {**answer, "context": self._prompt_ids + [token.id for token in completion.tokens]}


class ChatForm(_Form):
    """Answers of /api/chat."""

    def __init__(self, body: OllamaBody, loaded: LoadedModel) -> None:
        super().__init__(body, loaded)
        self._called = 0  # calls so far

    def more(self, piece: Piece) -> MoreChat:
        """More text, and more to come."""
        first, self._called = self._called, self._called + len(piece.calls)
        return {**self._more(piece.tokens), "message": spoken(piece, first)}

    def last(self, job: Job, piece: Piece) -> ChatEnd:
        """The end, with all of the text where nothing was streamed."""
        return {**self._end(job, piece.tokens), "message": spoken(piece)}


def whole(completion: Completion) -> Piece:
    """All of an answer in one piece."""
    return Piece(
        completion.text, completion.tokens, thought=completion.thought, calls=completion.calls
    )


def spoken(piece: Piece, first_call: int = 0) -> OllamaMessage:
    """A message from the model, or a part of it."""
    message: OllamaMessage = {"role": "assistant", "content": piece.text}
    if piece.thought:
        message["thinking"] = piece.thought
    if piece.calls:
        message["tool_calls"] = [
            {
                "id": new_call_id(),
                "function": {"index": place, "name": call.name, "arguments": call.arguments},
            }
            for place, call in enumerate(piece.calls, start=first_call)
        ]
    return message


def _thoughts(piece: Piece) -> Thoughts:
    return {"thinking": piece.thought} if piece.thought else {}


def head(name: str) -> Head:
    """The fields that every line begins with."""
    return {"model": name, "created_at": rfc3339(datetime.now(UTC))}


class LineForm:
    """One object a line: Ollama's clients parse every one."""

    def __init__(self, form: GenerateForm | ChatForm) -> None:
        self._form = form

    def parts(self, index: int, piece: Piece) -> Iterator[Document]:
        """More text."""
        yield self._form.more(piece)

    def keepalive(self) -> Document:
        """A line with empty text, as JSON has no comments."""
        return self._form.more(Piece())

    def end(self, job: Job) -> Iterator[Document]:
        """The last object."""
        yield self._form.last(job, Piece())
