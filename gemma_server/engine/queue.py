"""Who waits for a slot, in whose turn, and who was promised a place."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from gemma_server.engine.priority import PRIORITIES, Priority, PriorityTurns
from gemma_server.engine.sequence import Sequence

LONGEST_WAIT_S = 120.0  # that a caller is told
_QUEUES = 8  # as many as are promised at most; each waits a round more
_GRACE_S = 3.0  # to come back in, once a promise is due


def rounds_s(places: int, *, slots: int, held_s: float) -> float:
    """Seconds until so many places are free. A slot, which a request holds for `held_s` seconds,
    makes one free when it gets free; all may do so at once, so whole rounds count."""
    return math.ceil(places / slots) * held_s


class FairQueue:
    """Requests without a slot, in two classes that take turns as `PriorityTurns` says. Within a
    class each caller's come in their order, and callers take turns."""

    def __init__(self) -> None:
        # By caller, the one whose turn was longest ago first.
        self._lines: dict[Priority, dict[str, deque[Sequence]]] = {p: {} for p in PRIORITIES}
        self._turns = PriorityTurns()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for priority in PRIORITIES for sequence in self.of(priority))

    def of(self, priority: Priority) -> Iterator[Sequence]:
        """Those of one class."""
        return (sequence for line in self._lines[priority].values() for sequence in line)

    def append(self, sequence: Sequence) -> None:
        """Put a request at the end of its caller's line."""
        self._lines[sequence.priority].setdefault(sequence.caller, deque()).append(sequence)
        self._length += 1

    def remove(self, sequence: Sequence) -> None:
        """Take a request out."""
        lines = self._lines[sequence.priority]
        lines[sequence.caller].remove(sequence)
        self._length -= 1
        if not lines[sequence.caller]:
            del lines[sequence.caller]

    def next(self, active: Mapping[str, int]) -> Sequence:
        """Take out a request of the class whose turn it is: the first of the caller with the fewest
        slots in use; of several such callers it is the turn of the one that was served longest
        ago."""
        waiting = {priority: bool(lines) for priority, lines in self._lines.items()}
        lines = self._lines[self._turns.next(**waiting)]
        caller = min(lines, key=lambda caller: active.get(caller, 0))
        sequence = lines[caller][0]
        self.remove(sequence)
        if caller in lines:  # its next turn comes after the others'
            lines[caller] = lines.pop(caller)
        return sequence


@dataclass(frozen=True)
class Room:
    """Places in the queue, and prompt tokens in them."""

    places: int = 0
    tokens: int = 0

    def __add__(self, other: "Room") -> "Room":
        return Room(self.places + other.places, self.tokens + other.tokens)

    def share_of(self, limit: "Room") -> float:
        """How much of `limit` it is, by places or by tokens, whichever is more."""
        pairs = ((self.places, limit.places), (self.tokens, limit.tokens))
        return max(part / whole if whole else 0.0 for part, whole in pairs)

    def fits(self, limit: "Room") -> bool:
        """Whether there is so much in `limit`."""
        return self.places <= limit.places and self.tokens <= limit.tokens


@dataclass(frozen=True)
class _Promise:
    room: Room
    due: float  # on the queue's clock


class Promises:
    """Room in the queue for callers who were refused and told when to come back.

    Each has one promise. Who comes back then finds room, since nobody else takes what was promised.
    A promise that is not taken up ends some seconds after it was due. It halves how many places are
    promised at a time, and one that is taken up adds its own: clients that open a connection for
    each request never take theirs up, and must not keep the queue empty.
    """

    def __init__(self, whole: Room, clock: Callable[[], float]) -> None:
        self._whole, self._clock = whole, clock
        self._made: dict[str, _Promise] = {}  # in their order
        self._most_places = float(whole.places)  # promised at a time

    def before(self, caller: str) -> Room:
        """What is promised to others; for a caller whose own promise is due, to those before it."""
        self._forget_what_is_over()
        own = self._made.get(caller)
        until = own.due if own is not None and own.due <= self._clock() else math.inf
        others = (made for other, made in self._made.items() if other != caller)
        return sum((made.room for made in others if made.due < until), Room())

    def make(self, caller: str, room: Room, *, slots: int, held_s: float) -> float:
        """Promise this much, or keep what was promised; return the seconds until then. Nothing is
        promised for later than `LONGEST_WAIT_S`."""
        self._forget_what_is_over()
        own = self._made.get(caller)
        if own is not None and room.fits(own.room):
            return max(0.0, own.due - self._clock())
        others = (made.room for other, made in self._made.items() if other != caller)
        total = sum(others, room)
        wait_s = rounds_s(total.places, slots=slots, held_s=held_s)
        is_possible = room.fits(self._whole) and total.places <= self._most_places
        if is_possible and wait_s <= LONGEST_WAIT_S:
            self._made[caller] = _Promise(room, self._clock() + wait_s)
        return wait_s

    def taken_up(self, caller: str) -> None:
        """The caller has its room."""
        made = self._made.pop(caller, None)
        if made is not None:
            most = _QUEUES * self._whole.places
            self._most_places = min(most, self._most_places + made.room.places)

    def _forget_what_is_over(self) -> None:
        now = self._clock()
        for caller in [c for c, made in self._made.items() if made.due + _GRACE_S < now]:
            del self._made[caller]
            self._most_places = max(1.0, self._most_places / 2)
