"""Which requests go first: interactive ones, for which somebody waits, before those of a batch."""

from typing import Literal, TypeGuard, get_args

Priority = Literal["interactive", "batch"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
BATCH_EVERY = 8  # turns


def is_priority(word: object) -> TypeGuard[Priority]:
    """Whether it names a class."""
    return word in PRIORITIES


class PriorityTurns:
    """Whose turn it is. While both wait, one turn of every `BATCH_EVERY` is a batch's, so that none
    starves, and all others are interactive."""

    def __init__(self) -> None:
        self._passed = 0  # turns since a batch had one or none waited

    def next(self, *, interactive: bool, batch: bool) -> Priority:
        """The class that goes now, of those that wait; one does."""
        due = self._passed >= BATCH_EVERY - 1
        if batch and (due or not interactive):
            self._passed = 0
            return "batch"
        self._passed = self._passed + 1 if batch else 0
        return "interactive"
