"""How fast requests go through, as measured: what a deadline is held against."""

from gemma_server.engine.request import Timings

_UNKNOWN_S = 1.0  # per request, until one has ended
_SHARE = 0.2  # of the newest in a running mean


class Rates:
    """Rough times, and rather too short: a request is refused for them."""

    def __init__(self) -> None:
        self._held_s: float | None = None  # a running mean of the time that a slot is held
        self._token_s: float | None = None  # the least that a prompt's token has taken

    @property
    def held_s(self) -> float:
        """Seconds that a request keeps its slot."""
        return _UNKNOWN_S if self._held_s is None else self._held_s

    def ended(self, timings: Timings) -> None:
        """A request has left its slot."""
        held = timings.prefill_s + timings.decode_s
        before = held if self._held_s is None else self._held_s
        self._held_s = before + _SHARE * (held - before)

    def read(self, tokens: int, seconds: float) -> None:
        """A prompt was read."""
        rate = seconds / tokens
        self._token_s = rate if self._token_s is None else min(self._token_s, rate)

    def first_token_s(self, prompt_tokens: int, *, line: int, slots: int) -> float:
        """The soonest that a request with `line` others in front of it can have its first token.

        What is not measured yet counts as nothing, and so does the rest of the round that is on.
        """
        rounds = line // slots
        waits = rounds * (self._held_s or 0.0)
        return waits + prompt_tokens * (self._token_s or 0.0)
