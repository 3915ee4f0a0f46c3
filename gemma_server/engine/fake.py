"""A deterministic stand-in for the model: it repeats the prompt, then ends. No jax.

Its tokenizer has one token per byte. After "<bos>hello" it draws h, e, l, l, o, <eos>. With a
temperature above 0 and an odd seed, letters come in the other case, so that a test can see sampling
options arrive. Like a real cache it knows only what was put into a slot, and it refuses
plans that no real device could run.
"""

import time

from gemma_server.engine.plan import Chunk, Plan, Row, StepResult
from gemma_server.engine.request import SamplingOptions
from gemma_server.text.tokenizer import TURN_MARKERS, PieceType, Tokenizer, model_from_pieces

_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", *TURN_MARKERS)
_EOS = 1


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
    """Repeats each slot's prompt. `step_s` is how long a step takes; `fail_at` is the number of
    the plan, from 1, that raises."""

    def __init__(self, slots: int, *, step_s: float = 0.0, fail_at: int | None = None) -> None:
        self.step_s = step_s
        self.fail_at = fail_at
        self._cached: list[list[int]] = [[] for _ in range(slots)]
        self._prompt_length = [0] * slots
        self._last = [0] * slots
        self._plans = 0

    def dispatch(self, plan: Plan) -> "FakeStep":
        """Run the whole plan at once."""
        self._plans += 1
        if self._plans == self.fail_at:
            raise RuntimeError(f"told to fail at step {self.fail_at}")
        time.sleep(self.step_s * plan.steps)
        first = self._prefill(plan.prefill) if plan.prefill is not None else None
        return FakeStep(StepResult(first, tuple(self._decode(row, plan) for row in plan.decode)))

    def _prefill(self, chunk: Chunk) -> int | None:
        cached = self._cached[chunk.slot]
        if chunk.offset > len(cached):
            raise AssertionError(f"slot {chunk.slot}: {chunk.offset} leaves a gap in the cache")
        del cached[chunk.offset :]
        cached += chunk.token_ids
        if chunk.sampling is None:
            return None
        self._prompt_length[chunk.slot] = len(cached)
        return self._draw(chunk.slot, chunk.sampling)

    def _decode(self, row: Row, plan: Plan) -> tuple[int, ...]:
        cached = self._cached[row.slot]
        if row.position != len(cached):
            raise AssertionError(f"slot {row.slot}: {row.position} is not the cache's end")
        drawn = []
        for _ in range(plan.steps):
            cached.append(self._last[row.slot])
            drawn.append(self._draw(row.slot, row.sampling))
        return tuple(drawn)

    def _draw(self, slot: int, sampling: SamplingOptions) -> int:
        length = self._prompt_length[slot]
        source = 1 + len(self._cached[slot]) - length  # 0 is <bos>
        token = self._cached[slot][source] if source < length else _EOS
        if sampling.temperature > 0 and sampling.seed % 2 and token >= len(_SPECIAL):
            token = _swap_case(token)
        self._last[slot] = token
        return token


class FakeStep:
    """A plan that was over before it was asked for."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def read(self) -> StepResult:
        """What the plan drew."""
        return self._result


def _swap_case(token: int) -> int:
    byte = token - len(_SPECIAL)
    return len(_SPECIAL) + bytes([byte]).swapcase()[0] if byte < 128 else token
