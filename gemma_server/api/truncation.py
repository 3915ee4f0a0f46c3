"""Making a long prompt fit, for those who ask for it (`truncate`); others are refused."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gemma_server.serving.model import GenerativeModel

Item = TypeVar("Item")


@dataclass
class Truncation:
    """Drops the oldest part of what does not fit, and counts the tokens dropped."""

    room: int | None  # tokens of a prompt; None: nothing may be dropped
    dropped: int = 0

    @classmethod
    def of(cls, loaded: GenerativeModel, steps: int, *, truncate: bool) -> "Truncation":
        """Leave room for `steps` tokens of answer, but for no more than half of the context."""
        length = loaded.engine.context_length
        answer = max(1, min(steps, length // 2))  # a prompt never fills the context
        return cls(length - answer if truncate else None)

    def ids(self, ids: list[int]) -> list[int]:
        """The first id, which is `<bos>`, then as many of the newest as fit."""
        if self.room is None or len(ids) <= self.room:
            return ids
        self.dropped += len(ids) - self.room
        return [*ids[:1], *ids[len(ids) - self.room + 1 :]]

    def items(
        self,
        items: Sequence[Item],
        encode: Callable[[Sequence[Item]], list[int]],
        keep: Callable[[Item], bool],
    ) -> list[int]:
        """The ids of the items, without as many of the oldest as it takes to fit. The last item
        stays, and so does what `keep` selects: the result may still not fit."""
        ids = encode(items)
        if self.room is None or len(ids) <= self.room:
            return ids
        room, whole = self.room, len(ids)
        oldest = [index for index, item in enumerate(items[:-1]) if not keep(item)]

        def without(count: int) -> list[int]:
            gone = set(oldest[:count])
            return encode([item for index, item in enumerate(items) if index not in gone])

        # Bisection: a chat may have thousands of messages, and encoding them is slow.
        counts = range(len(oldest) + 1)
        fewest = bisect_left(counts, True, key=lambda count: len(without(count)) <= room)
        ids = without(min(fewest, len(oldest)))
        self.dropped += whole - len(ids)
        return ids
