"""A deterministic stand-in for the model: it repeats the prompt, then ends. No jax.

Its tokenizer has one token per byte. After "<bos>hello" it samples h, e, l, l, o, <eos>. With a
temperature above 0 and an odd seed, letters come in the other case, so that a test can see sampling
options arrive. Of a mask it takes what ends the answer or a part of it, unless its own token is in
it. What it samples has probability 1/2, and the next likeliest ids 1/4, 1/8, ... It
ignores penalties and bias, and while <eos> is banned it samples dots. Like a real cache it knows
only what was put into a slot, and it refuses plans that no real device could run.
"""

import math
import time

from gemma_server.engine.plan import Chunk, Copy, Plan, Row, StepResult
from gemma_server.engine.request import Logprobs, SamplingParams, Token
from gemma_server.text.family import GEMMA
from gemma_server.text.sentencepiece_model import PieceType, model_from_pieces
from gemma_server.text.tokenizer import Tokenizer

_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", GEMMA.start_of_turn, GEMMA.end_of_turn)
_EOS = 1
_DOT = len(_SPECIAL) + ord(".")
_VOCAB = len(_SPECIAL) + 257


def fake_pieces() -> tuple[list[str], list[float], list[int]]:
    """A vocabulary of one token per byte and Gemma's control tokens: pieces, scores, types."""
    pieces = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    types = [PieceType.CONTROL] * len(_SPECIAL) + [PieceType.BYTE] * 256 + [PieceType.NORMAL]
    types[_SPECIAL.index("<unk>")] = PieceType.UNKNOWN
    return pieces, [0.0] * len(pieces), list(map(int, types))


def fake_tokenizer() -> Tokenizer:
    """The tokenizer of `fake_pieces`."""
    return Tokenizer(model_from_pieces(*fake_pieces()))


class FakeRunner:
    """Repeats each slot's prompt. A step takes `step_s` seconds; plan number `fail_at`, counted
    from 1, raises."""

    first_byte = len(_SPECIAL)  # the id of byte 0

    def __init__(self, slots: int, *, step_s: float = 0.0, fail_at: int | None = None) -> None:
        self.step_s = step_s
        self.fail_at = fail_at
        self._cached: list[list[int]] = [[] for _ in range(slots)]
        self._prompt_length = [0] * slots
        self._banned_until = [0] * slots
        self._sampled: list[dict[int, int]] = [{} for _ in range(slots)]  # by position
        self._drafted = [0] * slots  # how many of the last tokens may be wrong
        self._plans = 0

    def dispatch(self, plan: Plan) -> "FakeStep":
        """Run the whole plan at once."""
        self._plans += 1
        if self._plans == self.fail_at:
            raise RuntimeError(f"told to fail at step {self.fail_at}")
        time.sleep(self.step_s * plan.steps)
        for copy in plan.copies:
            self._copy(copy)
        chunk, prompt = plan.prefill, tuple[Logprobs, ...]()
        first = self._prefill(chunk) if chunk is not None else None
        if chunk is not None:
            prompt = tuple(_logprobs(token, chunk.top_logprobs or 0) for token in chunk.scored)
        rows = tuple(self._decode(row) for row in plan.decode)
        return FakeStep(StepResult(first, rows, prompt))

    def touch(self) -> None:
        """Nothing to do: there is no device."""

    def _copy(self, copy: Copy) -> None:
        cached = self._cached[copy.source]
        if not 0 < copy.length <= len(cached):
            raise AssertionError(f"slot {copy.source} has not cached {copy.length} positions")
        self._cached[copy.target], self._drafted[copy.target] = cached[: copy.length], 0

    def _prefill(self, chunk: Chunk) -> Token | None:
        cached = self._cached[chunk.slot]
        if chunk.offset > len(cached):
            raise AssertionError(f"slot {chunk.slot}: {chunk.offset} leaves a gap in the cache")
        del cached[chunk.offset :]
        cached += chunk.token_ids
        self._drafted[chunk.slot] = 0
        if chunk.sampling is None:
            return None
        self._prompt_length[chunk.slot] = len(cached)
        self._banned_until[chunk.slot] = len(cached) + (_EOS in chunk.banned) * chunk.min_tokens
        return self._sample(chunk.slot, chunk.sampling, chunk.top_logprobs, chunk.mask)

    def _decode(self, row: Row) -> tuple[Token, ...]:
        slot, cached = row.slot, self._cached[row.slot]
        least = 0 if row.token is not None else len(cached) - self._drafted[slot]
        if not least <= row.position <= len(cached):
            raise AssertionError(f"slot {slot}: {row.position} is not the cache's end")
        if row.steps > 1 and (row.draft or row.masks != (None,) or row.token is not None):
            raise AssertionError("a draft, a mask or a given token takes one step")
        del cached[row.position :]  # what was foreseen wrongly
        guesses = row.draft if row.token is None else ()
        self._drafted[slot] = len(guesses)
        sampled: list[Token] = []
        wrong = False  # behind what is wrong, a model says something else
        fed = self._sampled[slot][row.position] if row.token is None else row.token
        for index, mask in enumerate(row.masks * row.steps):
            cached.append(fed)
            token = self._sample(slot, row.sampling, row.top_logprobs, mask)
            sampled.append(Token(_DOT) if wrong else token)
            fed = row.draft[index] if index < len(row.draft) else token.id
            wrong = wrong or (index < len(guesses) and guesses[index] != token.id)
        return tuple(sampled)

    def _sample(
        self, slot: int, sampling: SamplingParams, top: int | None, mask: bytes | None
    ) -> Token:
        token = self._wish(slot, sampling)
        if mask is not None:
            token = self._allowed(token, mask)
        self._sampled[slot][len(self._cached[slot])] = token
        return Token(token, None if top is None else _logprobs(token, top))

    def _allowed(self, token: int, mask: bytes) -> int:
        """The token, or another one that the mask allows."""
        allowed = {index for index in range(8 * len(mask)) if mask[index // 8] >> (index % 8) & 1}
        if not allowed:
            raise AssertionError("the mask allows nothing")
        wishes = (token, _EOS, *(self.first_byte + byte for byte in b'"}]0,:'))
        return next((wish for wish in wishes if wish in allowed), min(allowed))

    def _wish(self, slot: int, sampling: SamplingParams) -> int:
        """What it samples where it may."""
        length = self._prompt_length[slot]
        source = 1 + len(self._cached[slot]) - length  # 0 is <bos>
        token = self._cached[slot][source] if source < length else _EOS
        if sampling.temperature > 0 and sampling.seed % 2 and token >= len(_SPECIAL):
            token = _swap_case(token)
        if token == _EOS and len(self._cached[slot]) < self._banned_until[slot]:
            token = _DOT
        return token


class FakeStep:
    """A plan that has already ended."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def read(self) -> StepResult:
        """What the plan sampled."""
        return self._result


def _logprobs(token: int, top: int) -> Logprobs:
    likeliest = (((token + n) % _VOCAB, -(n + 1) * math.log(2)) for n in range(top))
    return Logprobs(-math.log(2), tuple(likeliest))


def _swap_case(token: int) -> int:
    byte = token - len(_SPECIAL)
    return len(_SPECIAL) + bytes([byte]).swapcase()[0] if byte < 128 else token
