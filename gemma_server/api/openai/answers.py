"""The answers of OpenAI's routes, whole and in parts."""

import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from gemma_server.api.caller import Caller
from gemma_server.api.generation import Completion, Piece
from gemma_server.api.job import Costs, Job
from gemma_server.api.logprobs import (
    Scored,
    TextLogprobs,
    TextOffsets,
    TokenLogprob,
    entries,
    scored,
)
from gemma_server.api.openai.schema import ChatCompletionBody, CompletionBody, OpenAIBody
from gemma_server.api.operation import Document
from gemma_server.api.tools import CallDelta, CallDocument, call_document
from gemma_server.engine.request import FinishReason, Logprobs, Token
from gemma_server.serving.model import LoadedModel


class PromptTokensDetails(TypedDict):
    """How many of the prompt's tokens were not computed again."""

    cached_tokens: int


class OpenAIUsage(TypedDict):
    """Tokens of one answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Head(TypedDict):
    """What all parts of one answer share."""

    id: str
    created: int  # seconds since 1970
    model: str
    system_fingerprint: str
    service_tier: NotRequired[Literal["default", "flex"]]  # if the request has one


class AssistantMessage(TypedDict):
    """The whole text, null where the model only called tools; and what it thought, if it did."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[CallDocument]]


class Delta(TypedDict, total=False):
    """More text, thoughts or calls; the first has the role."""

    role: Literal["assistant"]
    content: str
    reasoning_content: str
    tool_calls: list[CallDelta]


# A chat that ends in calls ends for their sake.
ChatFinishReason = FinishReason | Literal["tool_calls"]


class ChatLogprobs(TypedDict):
    """The logprobs of each token."""

    content: list[TokenLogprob]
    refusal: None


class ChatChoice(TypedDict):
    """One whole answer to a chat."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason


class ChatChunkChoice(TypedDict):
    """More of one answer to a chat."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None


class TextChoice(TypedDict):
    """One continued text, or a part of it; only the last part has a finish_reason."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletion(Head, Costs):
    """POST /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: OpenAIUsage


class TextCompletion(Head, Costs):
    """POST /v1/completions."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: OpenAIUsage


class ChatChunk(Head):
    """A part of a streamed chat."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]


class ChatLastChunk(ChatChunk, Costs):
    """The end of a streamed chat's last choice."""


class ChatUsageChunk(ChatChunk):
    """The last chunk if usage was asked for; it has no choices."""

    usage: OpenAIUsage


class TextChunk(Head):
    """A part of streamed texts."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class TextLastChunk(TextChunk, Costs):
    """The end of the last text."""


class TextUsageChunk(TextChunk):
    """The last chunk if usage was asked for; it has no choices."""

    usage: OpenAIUsage


AnyChatChunk = ChatLastChunk | ChatUsageChunk | ChatChunk
AnyTextChunk = TextLastChunk | TextUsageChunk | TextChunk


class ChatForm:
    """Answers to a chat."""

    def __init__(self, loaded: LoadedModel, body: ChatCompletionBody, caller: Caller) -> None:
        self._head = _head("chatcmpl", loaded, body, caller)
        self._tokenizer = loaded.tokenizer
        self._with_logprobs = body.logprobs
        self._called: Counter[int] = Counter()  # calls so far, by choice

    def answer(self, job: Job, n: int) -> ChatCompletion:
        """All of it."""
        choices: list[ChatChoice] = [
            {
                "index": index,
                "message": _message(completion),
                "logprobs": self._logprobs(completion.tokens),
                "finish_reason": _finish_reason(completion),
            }
            for index, completion in enumerate(job.completions)
        ]
        return {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": usage(job, n),
            **job.costs(),
        }

    def opening(self, index: int, scores: Sequence[Logprobs]) -> ChatChunk | None:
        """The role, before there is text."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def part(self, index: int, piece: Piece) -> ChatChunk:
        """More text, thoughts or calls."""
        delta: Delta = {}
        if piece.thought:
            delta["reasoning_content"] = piece.thought
        if piece.calls:
            first, self._called[index] = self._called[index], self._called[index] + len(piece.calls)
            delta["tool_calls"] = [
                {"index": place, **call_document(call)}
                for place, call in enumerate(piece.calls, start=first)
            ]
        if piece.text or not delta:
            delta["content"] = piece.text
        return self._chunk(index, delta, self._logprobs(piece.tokens), None)

    def ending(self, index: int, completion: Completion) -> ChatChunk:
        """Why there is no more."""
        return self._chunk(index, {}, None, _finish_reason(completion))

    def closing(self) -> ChatChunk:
        """What holds the usage."""
        return self._chunk_of([])

    def _chunk(
        self,
        index: int,
        delta: Delta,
        logprobs: ChatLogprobs | None,
        finish_reason: ChatFinishReason | None,
    ) -> ChatChunk:
        choice: ChatChunkChoice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return self._chunk_of([choice])

    def _chunk_of(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return {**self._head, "object": "chat.completion.chunk", "choices": choices}

    def _logprobs(self, tokens: Sequence[Token]) -> ChatLogprobs | None:
        if not self._with_logprobs:
            return None
        return {"content": entries(self._tokenizer, tokens), "refusal": None}


def _message(completion: Completion) -> AssistantMessage:
    calls = list(map(call_document, completion.calls))
    content = None if calls and not completion.text else completion.text
    message: AssistantMessage = {"role": "assistant", "content": content, "refusal": None}
    if completion.thought:
        message["reasoning_content"] = completion.thought
    if calls:
        message["tool_calls"] = calls
    return message


def _finish_reason(completion: Completion) -> ChatFinishReason:
    if completion.calls and completion.finish_reason == "stop":
        return "tool_calls"
    return completion.finish_reason


class TextForm:
    """Continued texts, each after its prompt if that is echoed."""

    def __init__(
        self, loaded: LoadedModel, prompts: list[list[int]], body: CompletionBody, caller: Caller
    ) -> None:
        self._head = _head("cmpl", loaded, body, caller)
        self._tokenizer = loaded.tokenizer
        self._prompts = [ids for ids in prompts for _ in range(body.n)] if body.echo else None
        self._offsets: list[TextOffsets] = []
        if body.logprobs is not None:
            self._offsets = [TextOffsets(loaded.tokenizer) for _ in range(len(prompts) * body.n)]

    def answer(self, job: Job, n: int) -> TextCompletion:
        """All of it."""
        return {
            **self._head,
            "object": "text_completion",
            "choices": [self._whole(index, item) for index, item in enumerate(job.completions)],
            "usage": usage(job, n),
            **job.costs(),
        }

    def opening(self, index: int, scores: Sequence[Logprobs]) -> TextChunk | None:
        """The prompt, if it is to be echoed."""
        if self._prompts is None:
            return None
        text, tokens = self._echo(index, scores)
        return self._chunk([self._choice(index, text, tokens)])

    def part(self, index: int, piece: Piece) -> TextChunk:
        """More text."""
        return self._chunk([self._choice(index, piece.text, scored(piece.tokens))])

    def ending(self, index: int, completion: Completion) -> TextChunk:
        """Why there is no more."""
        tokens = _ended_by(completion)
        choice = self._choice(index, "", tokens)
        last: TextChoice = {**choice, "finish_reason": completion.finish_reason}
        return self._chunk([last if tokens else {**last, "logprobs": None}])

    def closing(self) -> TextChunk:
        """What holds the usage."""
        return self._chunk([])

    def _chunk(self, choices: list[TextChoice]) -> TextChunk:
        return {**self._head, "object": "text_completion", "choices": choices}

    def _whole(self, index: int, completion: Completion) -> TextChoice:
        echo, tokens = self._echo(index, completion.prompt_logprobs)
        tokens += scored(completion.tokens) + _ended_by(completion)
        choice = self._choice(index, echo + completion.text, tokens)
        return {**choice, "finish_reason": completion.finish_reason}

    def _choice(self, index: int, text: str, tokens: list[Scored]) -> TextChoice:
        logprobs = self._offsets[index].lists(tokens) if self._offsets else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}

    def _echo(self, index: int, scores: Sequence[Logprobs]) -> tuple[str, list[Scored]]:
        if self._prompts is None:
            return "", []
        ids = self._prompts[index]
        return self._tokenizer.decode(ids), list(zip(ids, (None, *scores), strict=False))


def _ended_by(completion: Completion) -> list[Scored]:
    """The stop token: evaluation harnesses expect it among the sampled tokens."""
    return scored([completion.stop_token] if completion.stop_token else [])


def _head(prefix: str, loaded: LoadedModel, body: OpenAIBody, caller: Caller) -> Head:
    head: Head = {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": loaded.name,
        "system_fingerprint": f"fp_{loaded.info.digest[:12]}",
    }
    if body.service_tier is not None:
        waited_in = body.priority or caller.priority
        head["service_tier"] = "flex" if waited_in == "batch" else "default"
    return head


def usage(job: Job, n: int) -> OpenAIUsage:
    """A prompt counts once, however many answers it gets, which read it once too."""
    found, cached = job.usage(), [completion.cached_tokens for completion in job.completions]
    prompt, completion = found["prompt_tokens"] // n, found["completion_tokens"]
    first_read = sum(min(cached[i : i + n]) for i in range(0, len(cached), n))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": first_read},
    }


class ChunkForm:
    """Chunks. A choice's last one has its finish_reason. Usage comes once, since openai-go adds it
    up."""

    def __init__(self, form: ChatForm | TextForm, body: OpenAIBody) -> None:
        self._form, self._n = form, body.n
        self._with_usage = body.stream_options.include_usage
        self._opened: set[int] = set()

    def parts(self, index: int, piece: Piece) -> Iterator[Document]:
        """More text of one choice."""
        yield from self._open(index, piece.prompt)
        if not piece.prompt:
            yield self._form.part(index, piece)

    def keepalive(self) -> None:
        """No part: the transport has a keepalive of its own, if it needs one."""

    def end(self, job: Job) -> Iterator[Document]:
        """Why each choice ended, and the usage and timings."""
        *others, last = enumerate(job.completions)
        for index, completion in others:
            yield from self._open(index)
            yield self._form.ending(index, completion)
        index, completion = last
        yield from self._open(index)
        yield {**self._form.ending(index, completion), **job.costs()}
        if self._with_usage:
            yield {**self._form.closing(), "usage": usage(job, self._n)}

    def _open(self, index: int, scores: Sequence[Logprobs] = ()) -> Iterator[Document]:
        if index not in self._opened:
            self._opened.add(index)
            opening = self._form.opening(index, scores)
            if opening is not None:
                yield opening
