"""How long requests, chunks and steps take, as measured."""

import math
from collections import deque

from gemma_server.engine.request import Timings

_UNKNOWN_S = 1.0  # per request, until one has ended
_SHARE = 0.2  # the newest value's weight in a running mean
_STALL = 2  # times longer than before: what is beyond that is none of it
_CHUNKS = 32  # remembered; a stall can make one look quick, and it must be forgotten


class ServiceEstimates:
    """The basis of Retry-After, of refusals by deadline, and of how much a plan should hold."""

    def __init__(self) -> None:
        self._held_s: float | None = None  # a running mean
        self._tokens_s: deque[float] = deque(maxlen=_CHUNKS)  # for each token of a chunk
        self._chunks_s: dict[int, float] = {}  # running means, by the number of tokens
        self._steps_s: dict[int, float] = {}  # running means, by the number of rows

    @property
    def held_s(self) -> float:
        """Seconds that a request keeps its slot: a running mean."""
        return _UNKNOWN_S if self._held_s is None else self._held_s

    def ended(self, timings: Timings) -> None:
        """A request has left its slot."""
        self._held_s = _mean(self._held_s, timings.prefill_s + timings.decode_s)

    def chunk_read(self, tokens: int, rows: int, seconds: float) -> None:
        """The device has read a chunk without padding, and made a step of so many rows."""
        seconds -= self.step_s(rows)
        if seconds <= 0:
            return
        self._tokens_s.append(seconds / tokens)
        before = self._chunks_s.get(tokens)
        after = seconds if before is None else _mean(before, min(seconds, _STALL * before))
        if before is not None:  # what makes one slower, such as a long text, makes all so
            self._chunks_s = {t: s * after / before for t, s in self._chunks_s.items()}
        self._chunks_s[tokens] = after

    def stepped(self, rows: int, seconds: float) -> None:
        """The device has made one step of so many rows, with no chunk beside them."""
        before = self._steps_s.get(rows, seconds)
        self._steps_s[rows] = _mean(before, min(seconds, _STALL * before))

    def prefill_s(self, tokens: int) -> float:
        """The least seconds that so many tokens of prompts take; 0 if none was measured."""
        return tokens * min(self._tokens_s, default=0.0)

    def chunk_s(self, tokens: int, rows: int) -> float:
        """Seconds of a plan with a chunk and so many rows; infinite if none was measured."""
        if not self._chunks_s:
            return math.inf
        nearest = min(self._chunks_s, key=lambda known: abs(math.log(known / tokens)))
        return self._chunks_s[nearest] * tokens / nearest + self.step_s(rows)

    def measured_s(self, rows: int) -> float | None:
        """Seconds of one step of exactly so many rows; None if none was measured."""
        return self._steps_s.get(rows)

    def step_s(self, rows: int) -> float:
        """Seconds of one step of so many rows, or of as many as were measured; 0 if none were."""
        if rows == 0 or not self._steps_s:
            return 0.0
        known = min((count for count in self._steps_s if count >= rows), default=max(self._steps_s))
        return self._steps_s[known]


def _mean(before: float | None, newest: float) -> float:
    return newest if before is None else before + _SHARE * (newest - before)
