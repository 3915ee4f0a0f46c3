"""A request for tokens, the events that answer it, and the handle between the two."""

import os
import queue
import time
from dataclasses import dataclass, field
from typing import Literal

from gemma_server.engine.constraint import Constraint
from gemma_server.errors import RequestError

FinishReason = Literal["stop", "length"]

MAX_BIAS = 300  # tokens whose logits one request can change
MAX_BANS = 32  # stop ids that `min_tokens` can hold back
MAX_TOP_LOGPROBS = 20


def random_seed() -> int:
    """A seed for a request that brought none."""
    return int.from_bytes(os.urandom(8), "little")


@dataclass(frozen=True)
class SamplingParams:
    """How to choose each token. Temperature 0 is the exact argmax; then the filters are inert.

    First `bias` is added to the logits, then the penalties apply to tokens that occur in the last
    `penalty_window` tokens of prompt and answer. If that is None, the repetition penalty looks at
    all of both, and the presence and frequency penalties at the answer alone.
    """

    temperature: float = 0.0
    top_k: int = 0  # 0 is off
    top_p: float = 1.0  # 1 is off
    min_p: float = 0.0  # 0 is off
    seed: int = 0  # 0 <= seed < 2**64
    repetition_penalty: float = 1.0  # 1 is off; else it divides logits above 0, multiplies others
    frequency_penalty: float = 0.0  # subtracted for each occurrence
    presence_penalty: float = 0.0  # subtracted once
    penalty_window: int | None = None
    bias: tuple[tuple[int, float], ...] = ()  # of ids; at most MAX_BIAS

    @property
    def adjusts(self) -> bool:
        """The model's own logits are not what is sampled from."""
        penalties = (self.repetition_penalty, self.frequency_penalty, self.presence_penalty)
        return penalties != (1.0, 0.0, 0.0) or bool(self.bias)


@dataclass(frozen=True)
class Request:
    """Generate after `token_ids`, at most `max_new_tokens`, until one of `stop_ids` is sampled.

    No stop id can be sampled before `min_tokens` other tokens. With 0 `max_new_tokens` the prompt
    is read, and the answer is empty. `top_logprobs` asks for the logprobs of each token and of so
    many likeliest ones; `prompt_logprobs` asks for those of the prompt's tokens too.
    """

    token_ids: tuple[int, ...]
    max_new_tokens: int
    sampling: SamplingParams = SamplingParams()
    stop_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    top_logprobs: int | None = None  # 0 ... MAX_TOP_LOGPROBS; None: no logprobs at all
    prompt_logprobs: bool = False  # needs top_logprobs
    constraint: Constraint | None = None  # of its own, since it goes along with the answer
    cache_prompt: bool = True  # may begin where another text left off, and leave its own behind
    cache_salt: str = ""  # only for requests with the same

    def __post_init__(self) -> None:
        """Raises ValueError for what a slot has no room for; the caller has to prevent it."""
        if len(self.sampling.bias) > MAX_BIAS:
            raise ValueError(f"at most {MAX_BIAS} tokens can have a bias")
        if self.min_tokens > 0 and len(self.stop_ids) > MAX_BANS:
            raise ValueError(f"min_tokens goes with at most {MAX_BANS} stop tokens")
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS:
            raise ValueError(f"at most {MAX_TOP_LOGPROBS} logprobs a token")
        if self.prompt_logprobs and self.top_logprobs is None:
            raise ValueError("prompt_logprobs needs top_logprobs")
        if self.constraint is not None and self.min_tokens > 0:
            raise ValueError("what a constraint ends, min_tokens cannot hold back")


@dataclass(frozen=True)
class Logprobs:
    """What the model itself gave a token, before bias, penalties, temperature and filters."""

    logprob: float
    top: tuple[tuple[int, float], ...]  # the likeliest ids, likeliest first


@dataclass(frozen=True)
class PromptLogprobs:
    """Logprobs of the next prompt tokens: one event per chunk, before any Token.

    They start at the second token: the first has no logprob.
    """

    scores: tuple[Logprobs, ...]


@dataclass(frozen=True)
class Token:
    """One more token of the answer."""

    id: int
    logprobs: Logprobs | None = None


@dataclass(frozen=True)
class Finished:
    """Terminal: the answer is complete. `tokens` counts every token sampled, a stop token too."""

    reason: FinishReason
    tokens: int
    stop: Token | None = None  # the token that ended it, if one did


@dataclass(frozen=True)
class Cancelled:
    """Terminal: the caller gave up, or has all it wanted."""


@dataclass(frozen=True)
class Failed:
    """Terminal: the engine could not go on with this request."""

    error: RequestError


Event = PromptLogprobs | Token | Finished | Cancelled | Failed


@dataclass
class Timestamps:
    """When things happened to a request, in seconds of the monotonic clock."""

    submitted: float
    admitted: float | None = None
    first_token: float | None = None
    ended: float | None = None

    def timings(self) -> "Timings":
        """How long each stage took; a stage not yet over counts up to now."""
        now = self.ended if self.ended is not None else time.monotonic()
        admitted = self.admitted if self.admitted is not None else now
        first_token = self.first_token if self.first_token is not None else now
        return Timings(admitted - self.submitted, first_token - admitted, now - first_token)


@dataclass(frozen=True)
class Timings:
    """Seconds spent waiting for a slot, reading the prompt, and writing the answer."""

    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(eq=False)
class Handle:
    """One submitted request: its events come out of `next_event`, exactly one of them terminal."""

    request: Request
    timestamps: Timestamps
    cached_tokens: int = 0  # of the prompt, which did not have to be read
    draft_tokens: int = 0  # of the answer, which were foreseen
    accepted_tokens: int = 0  # and came true
    sampled_tokens: int = 0  # of the answer, once it has ended
    degraded_to: int | None = None  # tokens of the answer, fewer than wanted: the queue was filling
    _events: "queue.SimpleQueue[Event]" = field(default_factory=queue.SimpleQueue)

    def deliver(self, event: Event) -> None:
        """Called by the scheduler."""
        self._events.put(event)

    def next_event(self, timeout_s: float | None = None) -> Event | None:
        """The next event, or None when none came within `timeout_s` seconds."""
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None
