"""One dispatch to the device as data, and what runs it."""

from dataclasses import dataclass
from typing import Protocol

from gemma_server.engine.request import Logprobs, SamplingOptions, Token


@dataclass(frozen=True)
class Chunk:
    """Read `token_ids` into `slot` at positions offset, offset + 1, ...

    `sampling` is None except in a prompt's last chunk, behind which the first token is drawn. That
    chunk says for the whole answer how its tokens are drawn: `banned` ids not before `min_tokens`
    others, and with the `top_logprobs` likeliest (None: no logprobs).
    `scored` are the ids that follow each token within the prompt, if their logprobs are wanted.
    """

    task: int
    slot: int
    offset: int
    token_ids: tuple[int, ...]
    sampling: SamplingOptions | None
    top_logprobs: int | None = None
    banned: tuple[int, ...] = ()
    min_tokens: int = 0
    scored: tuple[int, ...] = ()


@dataclass(frozen=True)
class Row:
    """Feed the slot's last drawn token at `position`, and draw what follows.

    How is known from the prompt's last chunk; here it only helps to choose a program. `banned`
    says whether some ids still are.
    """

    task: int
    slot: int
    position: int
    sampling: SamplingOptions
    top_logprobs: int | None = None
    banned: bool = False


@dataclass(frozen=True)
class Plan:
    """What the device does next: at most one chunk of one prompt, then the rows, side by side.

    Each row draws `steps` tokens, every one fed at the position behind the one before.
    """

    prefill: Chunk | None
    decode: tuple[Row, ...]
    steps: int = 1


@dataclass(frozen=True)
class StepResult:
    """The tokens drawn: behind the prefill chunk (None if it was not the last), and by each row.

    A negative id says that the row's logits were not finite. The device knows no ends: it draws
    behind a stop token and behind the cache's end, too, and what it draws there means nothing.
    """

    prefill: Token | None
    decode: tuple[tuple[Token, ...], ...]
    prompt: tuple[Logprobs, ...] = ()  # of the chunk's `scored`


class PendingStep(Protocol):
    """A plan under way on the device."""

    def read(self) -> StepResult:
        """Wait for the plan's end and return what it drew."""
        ...


class Runner(Protocol):
    """What executes plans. Only the engine's thread may call it."""

    def dispatch(self, plan: Plan) -> PendingStep:
        """Start a plan; plans run in the order of their dispatch, whether or not they are read."""
        ...

    def touch(self) -> None:
        """Have the device do nothing, and wait until it has."""
        ...
