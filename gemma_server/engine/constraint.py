"""What the engine asks of a constraint on an answer."""

from collections.abc import Sequence
from typing import Protocol


class Constraint(Protocol):
    """What one answer may be. It has the tokens so far, and says which may follow."""

    @property
    def mask(self) -> bytes | None:
        """A bit for each token that may follow, id 0 in the lowest of the first byte; None if all
        may. Some bit is set."""
        ...

    @property
    def is_complete(self) -> bool:
        """No token may follow but those that end an answer."""
        ...

    def foresee(self, guess: Sequence[int], most: int) -> list[tuple[int, bytes]]:
        """At most `most` of the tokens that will follow, each with the mask behind it: those that
        must, and where several may, those of the guess."""
        ...

    def take(self, token: int) -> None:
        """Go on with this token.

        Raises:
            RequestError: nothing may follow it.
        """
        ...
