"""Who waits for a slot, in whose turn, and who was promised a place."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from gemma_server.engine.sequence import Sequence

_LONGEST_PROMISE_S = 120.0
_GRACE_S = 5.0  # to come back in, once a promise is due
_MOST_PROMISES = 1024


class FairQueue:
    """Requests without a slot. Each caller's come in their order, and callers take turns."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Sequence]] = {}  # the caller whose turn was longest ago first
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for line in self._lines.values() for sequence in line)

    def append(self, sequence: Sequence) -> None:
        """Put a request at the end of its caller's line."""
        self._lines.setdefault(sequence.caller, deque()).append(sequence)
        self._length += 1

    def remove(self, sequence: Sequence) -> None:
        """Take a request out."""
        line = self._lines[sequence.caller]
        line.remove(sequence)
        self._length -= 1
        if not line:
            del self._lines[sequence.caller]

    def next(self, active: Mapping[str, int]) -> Sequence:
        """Take out the first request of the caller with the fewest slots in use; of several such
        callers it is the turn of the one that was served longest ago."""
        caller = min(self._lines, key=lambda caller: active.get(caller, 0))
        sequence = self._lines[caller][0]
        self.remove(sequence)
        if caller in self._lines:  # its next turn comes after the others'
            self._lines[caller] = self._lines.pop(caller)
        return sequence


@dataclass
class _Promise:
    places: int
    due: float  # on the queue's clock


class Promises:
    """Places in the queue for callers who were refused and told when to come back.

    Who comes back then finds room, since nobody else takes a promised place. A promise that is not
    taken up ends some seconds after it was due.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._made: dict[str, _Promise] = {}  # in their order

    def places_before(self, caller: str) -> int:
        """Places promised to others; for a caller whose own promise is due, to those before it."""
        self._forget_what_is_over()
        own = self._made.get(caller)
        until = own.due if own is not None and own.due <= self._clock() else math.inf
        others = (promise for other, promise in self._made.items() if other != caller)
        return sum(promise.places for promise in others if promise.due < until)

    def make(self, caller: str, places: int, *, slots: int, held_s: float) -> float:
        """Promise so many places, or keep what was promised; return the seconds until then.

        A slot, which a request holds for `held_s` seconds, makes a place free when it gets free.
        All may do so at once: whole rounds count.
        """
        self._forget_what_is_over()
        own = self._made.get(caller)
        if own is None or own.places < places:
            ahead = sum(promise.places for other, promise in self._made.items() if other != caller)
            rounds = math.ceil((ahead + places) / slots)
            own = _Promise(places, self._clock() + rounds * held_s)
            wait_s = own.due - self._clock()
            if wait_s > _LONGEST_PROMISE_S or len(self._made) >= _MOST_PROMISES:
                return _LONGEST_PROMISE_S
            self._made[caller] = own
        return max(0.0, own.due - self._clock())

    def taken_up(self, caller: str) -> None:
        """The caller has a place."""
        self._made.pop(caller, None)

    def _forget_what_is_over(self) -> None:
        now = self._clock()
        for caller in [c for c, made in self._made.items() if made.due + _GRACE_S < now]:
            del self._made[caller]
