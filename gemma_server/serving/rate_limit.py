"""How much may pass in a minute: token buckets of API keys and of models."""

import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import Literal

from gemma_server.errors import ExceedsRateLimit, RateLimited

Holder = Literal["key", "model"]  # whose bucket it is
Unit = Literal["requests", "tokens"]

_MINUTE_S = 60.0
_NEARLY = 1e-6  # so little is missing by rounding alone
_lock = threading.Lock()  # of all buckets: a request takes from several at once, or from none


class Bucket:
    """Holds a minute's worth of `unit`, and refills evenly. Not thread-safe by itself."""

    def __init__(
        self, holder: Holder, unit: Unit, per_minute: int, clock: Callable[[], float]
    ) -> None:
        self.holder, self.unit, self.per_minute = holder, unit, per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._filled_at = clock()

    def level(self) -> float:
        """How much is in it now."""
        now = self._clock()
        more = (now - self._filled_at) * self.per_minute / _MINUTE_S
        self._level = min(float(self.per_minute), self._level + more)
        self._filled_at = now
        return self._level

    def wait_s(self, amount: int) -> float:
        """Seconds until so much is in it, which is at most a minute's worth."""
        missing = amount - self.level()
        return missing * _MINUTE_S / self.per_minute if missing > _NEARLY else 0.0

    def take(self, amount: int) -> None:
        """Take so much out, which is in it."""
        self._level = self.level() - amount

    def give_back(self, amount: int) -> None:
        """Put back what was not used; what does not fit is lost."""
        self._level = min(float(self.per_minute), self.level() + amount)


class RateLimit:
    """What one API key, or one model, may take in a minute; 0 is no limit."""

    def __init__(
        self,
        holder: Holder,
        requests: int = 0,
        tokens: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.per_minute = (requests, tokens)
        both: tuple[tuple[Unit, int], ...] = (("requests", requests), ("tokens", tokens))
        self.buckets = [Bucket(holder, unit, most, clock) for unit, most in both if most > 0]


NO_LIMIT = RateLimit("model")


class ModelRateLimits:
    """The models' limits: the versions of one share it."""

    def __init__(self) -> None:
        self._known: dict[str, RateLimit] = {}

    def of(self, model: str, requests: int, tokens: int) -> RateLimit:
        """The model's; a new one if its figures have changed."""
        known = self._known.get(model)
        if known is None or known.per_minute != (requests, tokens):
            known = self._known[model] = RateLimit("model", requests, tokens)
        return known


class Charge:
    """What one request has taken: itself, and the most tokens that it may use. `settle` it.

    Raises:
        ExceedsRateLimit: more than a whole bucket holds; nothing was taken.
        RateLimited: more than there is now; nothing was taken.
    """

    def __init__(self, limits: Iterable[RateLimit], tokens: int) -> None:
        self._tokens = tokens
        buckets = [bucket for limit in limits for bucket in limit.buckets]
        amounts: dict[Unit, int] = {"requests": 1, "tokens": tokens}
        with _lock:
            for bucket in buckets:
                if amounts[bucket.unit] > bucket.per_minute:
                    raise ExceedsRateLimit(bucket.holder, tokens=tokens, limit=bucket.per_minute)
            waits = {bucket: bucket.wait_s(amounts[bucket.unit]) for bucket in buckets}
            slowest = max(buckets, key=lambda bucket: waits[bucket], default=None)
            if slowest is not None and waits[slowest] > 0:
                raise RateLimited(
                    slowest.holder,
                    slowest.unit,
                    wanted=amounts[slowest.unit],
                    left=int(slowest.level()),
                    limit=slowest.per_minute,
                    retry_after_s=math.ceil(waits[slowest]),
                )
            for bucket in buckets:
                bucket.take(amounts[bucket.unit])
        self._buckets = buckets  # until it is settled

    def settle(self, used_tokens: int) -> None:
        """It has ended: give back the tokens that it has not used. Only the first call counts."""
        self._give_back({"requests": 0, "tokens": self._tokens - used_tokens})

    def cancel(self) -> None:
        """It was not taken in after all: give everything back."""
        self._give_back({"requests": 1, "tokens": self._tokens})

    def _give_back(self, amounts: dict[Unit, int]) -> None:
        with _lock:
            buckets, self._buckets = self._buckets, []
            for bucket in buckets:
                bucket.give_back(amounts[bucket.unit])
