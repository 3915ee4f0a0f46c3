"""How long requests take, as measured."""

from collections import deque

from gemma_server.engine.request import Timings

_UNKNOWN_S = 1.0  # per request, until one has ended
_SHARE = 0.2  # the newest value's weight in the running mean
_CHUNKS = 32  # remembered; a stall can make one look quick, and it must be forgotten


class ServiceEstimates:
    """The basis of Retry-After, and of refusals by deadline."""

    def __init__(self) -> None:
        self._held_s: float | None = None  # a running mean
        self._chunks_s: deque[float] = deque(maxlen=_CHUNKS)

    @property
    def held_s(self) -> float:
        """Seconds that a request keeps its slot: a running mean."""
        return _UNKNOWN_S if self._held_s is None else self._held_s

    def ended(self, timings: Timings) -> None:
        """A request has left its slot."""
        held = timings.prefill_s + timings.decode_s
        before = held if self._held_s is None else self._held_s
        self._held_s = before + _SHARE * (held - before)

    def chunk_read(self, seconds: float) -> None:
        """The device has read a full chunk of a prompt."""
        self._chunks_s.append(seconds)

    def prefill_s(self, chunks: int) -> float:
        """The least seconds that so many full chunks take in turn; 0 if none was measured."""
        return chunks * min(self._chunks_s, default=0.0)
