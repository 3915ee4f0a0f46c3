"""What the programs return, unpacked on the host: tokens and their logprobs."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_server.engine.plan import Plan, StepResult
from gemma_server.engine.request import MAX_TOP_LOGPROBS, Logprobs, Token

_IDS = slice(2, 2 + MAX_TOP_LOGPROBS)
_VALUES = slice(_IDS.stop, None)

Words = npt.NDArray[np.int32]


class PendingTokens:
    """The results of a plan in flight.

    A chunk's results are [1 + T, words]: the token sampled after it, then the prompt's tokens. The
    rows' results are [steps, B, words].
    """

    def __init__(self, plan: Plan, prefill: Any, decode: Any) -> None:
        self._plan, self._prefill, self._decode = plan, prefill, decode

    def read(self) -> StepResult:
        """Wait for the device and fetch them."""
        rows: tuple[tuple[Token, ...], ...] = ()
        if self._decode is not None:
            rows = tuple(self._rows(np.asarray(self._decode)))
        chunk = self._plan.prefill
        if chunk is None:
            return StepResult(None, rows)
        words, top = np.asarray(self._prefill), chunk.top_logprobs
        [first] = _tokens(words[:1], top)
        prompt = tuple(_logprobs(found, top or 0) for found in words[1 : 1 + len(chunk.scored)])
        return StepResult(first if chunk.sampling is not None else None, rows, prompt)

    def _rows(self, words: Words) -> Iterator[tuple[Token, ...]]:
        at = 0
        for row in self._plan.decode:  # behind them is padding
            found = words[0, at : at + row.fed] if row.draft else words[: row.steps, at]
            yield _tokens(found, row.top_logprobs)
            at += row.fed


def _tokens(words: Words, top: int | None) -> tuple[Token, ...]:
    if top is None:
        return tuple(map(Token, words[:, 0].tolist()))
    return tuple(Token(int(found[0]), _logprobs(found, top)) for found in words)


def _logprobs(words: Words, top: int) -> Logprobs:
    floats = words.view(np.float32)
    pairs = zip(words[_IDS].tolist(), floats[_VALUES].tolist(), strict=True)
    return Logprobs(float(floats[1]), tuple(pairs)[:top])
