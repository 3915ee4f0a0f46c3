"""Turns the tokens of a request's handle into safe text, a piece at a time."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from gemma_server.engine.engine import Engine
from gemma_server.engine.request import (
    Cancelled,
    Failed,
    Finished,
    FinishReason,
    Handle,
    Logprobs,
    PromptLogprobs,
    Timings,
    Token,
)
from gemma_server.errors import DeadlineExceeded, Disconnected
from gemma_server.text.chat import ToolCall
from gemma_server.text.detokenizer import TextStream
from gemma_server.text.prompted_tools import PromptedStream
from gemma_server.text.stop_strings import StopStrings
from gemma_server.text.tokenizer import Tokenizer
from gemma_server.text.turn_stream import Reading, Said, TurnStream

_LOOK_UP_S = 0.2  # how often a waiting handler checks whether its client has disconnected


@dataclass(frozen=True)
class Piece:
    """The next part of an answer's text, and the tokens that begin in it.

    If the prompt's logprobs are wanted, they come before any text, in a piece of their own.
    """

    text: str = ""
    tokens: tuple[Token, ...] = ()
    prompt: tuple[Logprobs, ...] = ()  # of all prompt tokens but the first
    thought: str = ""
    calls: tuple[ToolCall, ...] = ()

    @property
    def is_keepalive(self) -> bool:
        """It only says that nothing has come for `keepalive_s`."""
        return self == _KEEPALIVE


_KEEPALIVE = Piece()


@dataclass(frozen=True)
class Completion:
    """How a generation ended, and what it took."""

    text: str
    thought: str
    calls: tuple[ToolCall, ...]
    tokens: tuple[Token, ...]  # of the text: none after a stop string
    stop_token: Token | None  # the token that ended it, if one did; it has no text
    prompt_logprobs: tuple[Logprobs, ...]  # of all prompt tokens but the first, if wanted
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int  # of the prompt, which did not have to be read
    completion_tokens: int
    timings: Timings


class Generation:
    """One submitted request as text. Iterate `pieces`; then `completion` is there.

    Leaving the iteration early, by an exception or by closing it, frees the slot.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        handle: Handle,
        stops: StopStrings | None = None,
        reading: Reading | None = None,
        *,
        disconnected: Callable[[], bool] = lambda: False,
        deadline: float | None = None,
        keepalive_s: float = math.inf,
    ) -> None:
        self._engine, self._handle = engine, handle
        request = handle.request
        if reading is not None and request.constraint is not None:
            reading = replace(reading, trims=False)  # what is bound stays as it is
        content = TextStream(tokenizer.piece_bytes, stops, request.min_tokens)
        self._stream: TurnStream | PromptedStream
        if reading is not None and reading.names:
            self._stream = PromptedStream(content, reading.names, only_one=reading.only_one)
        else:
            self._stream = TurnStream(content, tokenizer, reading, request.token_ids)
        self._disconnected = disconnected
        self._deadline = deadline  # on the monotonic clock
        self._keepalive_s = keepalive_s  # after so many seconds without text, an empty piece
        self._unshown: deque[tuple[int, Token]] = deque()  # with the offset where each begins
        self._shown = 0  # characters
        self._prompt_logprobs: list[Logprobs] = []
        self._ending: Finished | None = None
        self._completion: Completion | None = None

    @property
    def completion(self) -> Completion:
        """How it ended. Only after `pieces` is exhausted."""
        assert self._completion is not None
        return self._completion

    def pieces(self) -> Iterator[Piece]:
        """The answer as it comes; an empty piece whenever nothing has come for `keepalive_s`.

        Raises:
            RequestError: the engine failed, or the deadline passed.
            Disconnected: `disconnected` said so while waiting.
        """
        shown: list[Piece] = []
        try:
            for piece in self._safe_pieces():
                shown.append(piece)
                yield piece
        finally:
            self.cancel()
        assert self._ending is not None
        self._completion = Completion(
            "".join(piece.text for piece in shown),
            "".join(piece.thought for piece in shown),
            tuple(call for piece in shown for call in piece.calls),
            tuple(token for piece in shown for token in piece.tokens),
            self._ending.stop,
            tuple(self._prompt_logprobs),
            self._ending.reason,
            len(self._handle.request.token_ids),
            self._handle.cached_tokens,
            self._ending.tokens,
            self._handle.timestamps.timings(),
        )

    def run(self) -> Completion:
        """Wait for the whole answer."""
        for _ in self.pieces():
            pass
        return self.completion

    def cancel(self) -> None:
        """Free the slot, or the place in the queue; nothing happens if the request has ended."""
        self._engine.cancel(self._handle)

    @property
    def timings(self) -> Timings:
        """How long each stage has taken up to now."""
        return self._handle.timestamps.timings()

    @property
    def drafts(self) -> tuple[int, int]:
        """How many tokens were foreseen, and how many of these came true."""
        return self._handle.draft_tokens, self._handle.accepted_tokens

    def _safe_pieces(self) -> Iterator[Piece]:
        tokens, prompt_told = 0, False
        while True:
            event = self._next_event()
            if event is None:
                yield _KEEPALIVE
                continue
            if self._prompt_logprobs and not prompt_told:
                prompt_told = True
                yield Piece(prompt=tuple(self._prompt_logprobs))
            if isinstance(event, Token):
                tokens += 1
                said = self._push(event)
                if any(said):
                    yield self._piece(said)
                if self._stream.stopped:
                    self._ending = Finished("stop", tokens)
                    return
            else:
                rest = self._piece(self._stream.close(), whole=not self._stream.stopped)
                if not rest.is_keepalive:
                    yield rest
                self._ending = Finished("stop", event.tokens) if self._stream.stopped else event
                return

    def _push(self, token: Token) -> Said:
        """What the token makes certain. Only those of the content are shown with its text."""
        begin, was_content = self._stream.decoded, self._stream.in_content
        said = self._stream.push(token.id)
        if was_content and self._stream.in_content:
            self._unshown.append((begin, token))
        return said

    def _piece(self, said: Said, *, whole: bool = False) -> Piece:
        """What was said, with the tokens that begin in its text; with `whole`, all that are
        left."""
        self._shown += len(said.text)
        tokens = []
        while self._unshown and (whole or self._unshown[0][0] < self._shown):
            tokens.append(self._unshown.popleft()[1])
        return Piece(said.text, tuple(tokens), thought=said.thought, calls=said.calls)

    def _next_event(self) -> Token | Finished | None:
        """The next event; None when none has come for as long as `keepalive_s`."""
        until = time.monotonic() + self._keepalive_s
        while time.monotonic() < until:
            self._look_up()
            match self._handle.next_event(self._patience()):
                case Token() | Finished() as event:
                    return event
                case PromptLogprobs(scores):
                    self._prompt_logprobs += scores
                case Failed(error):
                    raise error.with_traceback(None)  # one error may end many requests
                case Cancelled():  # by nobody but ourselves
                    raise Disconnected
        return None

    def _patience(self) -> float:
        if self._deadline is None:
            return _LOOK_UP_S
        return min(_LOOK_UP_S, max(0.0, self._deadline - time.monotonic()))

    def _look_up(self) -> None:
        if self._disconnected():
            raise Disconnected
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise DeadlineExceeded("the time allowed for this request is over")
