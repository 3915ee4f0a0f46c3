"""One dispatch to the device as data, and what runs it."""

from dataclasses import dataclass
from typing import Protocol

from gemma_server.engine.request import Logprobs, SamplingParams, Token


@dataclass(frozen=True)
class Copy:
    """Copy what `source` has cached at its first `length` positions into the slot `target`."""

    source: int
    target: int
    length: int


@dataclass(frozen=True)
class Chunk:
    """Read `token_ids` into `slot` at positions offset, offset + 1, ...

    `sampling` is None except in a prompt's last chunk, after which the first token is sampled.
    That chunk holds the sampling options of the whole answer: no id of `banned` is sampled before
    `min_tokens` others, and each token comes with the logprobs of the `top_logprobs` likeliest
    (None: no logprobs). `scored` are the prompt's ids that follow each token, if their logprobs
    are wanted. The first token is one of those in `mask`, if there is one.
    """

    sequence: int
    slot: int
    offset: int
    token_ids: tuple[int, ...]
    sampling: SamplingParams | None
    top_logprobs: int | None = None
    banned: tuple[int, ...] = ()
    min_tokens: int = 0
    scored: tuple[int, ...] = ()
    mask: bytes | None = None


@dataclass(frozen=True)
class Row:
    """Feed the slot's last sampled token, or `token`, at `position`, and sample `steps` tokens,
    each of them fed at the next position.

    With a `draft` feed its tokens too, behind that one, and sample a token after each: all in one
    step. The device has the sampling options from the prompt's last chunk; here they only choose a
    program. `banned` says whether some ids are still banned. With `masks` each token that is
    sampled is one of those in its mask; then there is one step.
    """

    sequence: int
    slot: int
    position: int
    sampling: SamplingParams
    top_logprobs: int | None = None
    banned: bool = False
    steps: int = 1
    draft: tuple[int, ...] = ()
    masks: tuple[bytes | None, ...] = (None,)  # one more than in the draft
    token: int | None = None  # with one step

    @property
    def fed(self) -> int:
        """How many tokens it feeds in one step."""
        return 1 + len(self.draft)


@dataclass(frozen=True)
class Plan:
    """What the device does next: the copies, at most one chunk of one prompt, then all rows as one
    batch."""

    prefill: Chunk | None
    decode: tuple[Row, ...]
    copies: tuple[Copy, ...] = ()

    @property
    def fed(self) -> int:
        """How many tokens the rows feed in one step."""
        return sum(row.fed for row in self.decode)

    @property
    def steps(self) -> int:
        """How often the device runs the model for the rows; 1 if there are none."""
        return max((row.steps for row in self.decode), default=1)


@dataclass(frozen=True)
class StepResult:
    """The tokens sampled: after the prefill chunk (None if it was not the last), and by each row,
    as many as its steps, or one after each token that it feeds.

    A negative id says that the row's logits were not finite. The device does not know where an
    answer ends: it goes on after a stop token and past the cache's end, and those tokens mean
    nothing.
    """

    prefill: Token | None
    decode: tuple[tuple[Token, ...], ...]
    prompt: tuple[Logprobs, ...] = ()  # of the chunk's `scored`


class PendingStep(Protocol):
    """A plan in flight."""

    def read(self) -> StepResult:
        """Wait for the plan's end and return what it sampled."""
        ...


class Runner(Protocol):
    """What executes plans. Only the engine's thread may call it."""

    def dispatch(self, plan: Plan) -> PendingStep:
        """Start a plan. Plans run in the order of dispatch, whether or not they are read."""
        ...

    def touch(self) -> None:
        """Wait until the device has answered; it runs next to nothing."""
        ...
