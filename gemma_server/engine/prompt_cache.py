"""Which texts the slots of the cache still hold, and where a new prompt is best put."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from gemma_server.engine.plan import Copy


class Text(NamedTuple):
    """Token ids. Texts with different salts have nothing in common."""

    ids: tuple[int, ...] = ()
    salt: str = ""


# To copy takes as long as to read some tokens, and a short text is soon read again.
_WORTH_COPYING = 32  # tokens
_WORTH_KEEPING = 64
_MOSTLY = 0.75  # of a kept text, beside which another that has so much of it is not kept
_BLOCK = 64  # tokens that are compared at a time


class Placement(NamedTuple):
    """The slot for a prompt, how many of its first tokens that has already, and the copies that
    have to be made before anything is read into it."""

    slot: int
    cached: int
    copies: tuple[Copy, ...] = ()


@dataclass
class _Left:
    """What was left in a slot."""

    text: Text = field(default_factory=Text)
    used: int = 0  # the turn in which it was last of use; 0: never


@dataclass
class PromptCache:
    """The texts of ended requests: in free slots, until a request takes them over, and in `kept`
    further slots, numbered from `slots` on, where no request runs.

    A prompt that begins like one of these, or like that of a running request, need not be read
    whole. It is compared with each: they are few.
    """

    slots: int
    kept: int = 0
    queries: int = 0  # prompts that could have begun like another
    hits: int = 0  # those that did
    tokens: int = 0  # that were not read again
    _left: list[_Left] = field(init=False)
    _turn: int = 0

    def __post_init__(self) -> None:
        self._left = [_Left() for _ in range(self.slots + self.kept)]

    def leave(self, slot: int, text: Text) -> None:
        """A request has ended: the slot is free, and has the keys and values of this text."""
        self._left[slot] = _Left(text, self._next_turn())

    def longest(self, prompt: Text, running: Mapping[int, Text]) -> int:
        """How many of the prompt's first tokens some slot has; its last one is read in any case."""
        return max(self._shared(prompt, running).values())

    def place(
        self,
        prompt: Text,
        free: Collection[int],
        running: Mapping[int, Text],
        *,
        reuse: bool = True,
    ) -> Placement:
        """Choose one of the free slots, and take what it holds away.

        `running` has what the slots in use hold. A slot whose whole text the prompt goes on with is
        taken as it is. Else the text stays, for those who may yet go on with it, and is copied to
        the slot that was of no use for the longest time.
        """
        common = self._shared(prompt, running)
        if not reuse:
            common = dict.fromkeys(common, 0)
        source = max(common, key=lambda slot: (common[slot], slot in free))
        slot, cached = self._chosen(source, common, free)
        copies = self._kept_from(slot, prompt, source, running)
        if slot != source and cached > 0:
            self._left[source].used = self._next_turn()
            copies += (Copy(source, slot, cached),)
        self._left[slot] = _Left()
        if reuse:
            self.queries, self.hits = self.queries + 1, self.hits + (cached > 0)
            self.tokens += cached
        return Placement(slot, cached, copies)

    def catch_up(
        self, slot: int, prompt: Text, cached: int, running: Mapping[int, Text]
    ) -> Copy | None:
        """What to copy into a slot before the first chunk is read into it, now that others may have
        read more that this prompt begins with."""
        common = self._shared(prompt, running)
        source = max(common, key=lambda slot: common[slot])
        if common[source] < cached + _WORTH_COPYING:
            return None
        self.hits += cached == 0
        self.tokens += common[source] - cached
        return Copy(source, slot, common[source])

    def _chosen(
        self, source: int, common: Mapping[int, int], free: Collection[int]
    ) -> tuple[int, int]:
        """The slot, and how many tokens it will have of `source`, which has the most."""
        cached = common[source]
        if source in free and 0 < cached == len(self._left[source].text.ids):
            return source, cached
        worth = cached >= _WORTH_COPYING
        slot = min(free, key=lambda slot: (worth and slot == source, self._left[slot].used))
        return slot, cached if worth else 0

    def _shared(self, prompt: Text, running: Mapping[int, Text]) -> dict[int, int]:
        texts = {slot: left.text for slot, left in enumerate(self._left)} | dict(running)
        return {slot: shared(text, prompt) for slot, text in texts.items()}

    def _kept_from(
        self, slot: int, prompt: Text, source: int, running: Mapping[int, Text]
    ) -> tuple[Copy, ...]:
        """Copy a text that is about to be overwritten to where it is kept, if it is worth it."""
        left, kept = self._left[slot], range(self.slots, self.slots + self.kept)
        places = [place for place in kept if place != source]
        if len(left.text.ids) < _WORTH_KEEPING or not places:
            return ()
        others = (other.text for other in self._left if other is not left)
        if any(_begins(longer, left.text) for longer in (*others, *running.values(), prompt)):
            return ()
        oldest = min(places, key=lambda place: self._left[place].used)
        for place in places:  # what is mostly in this text too need not stay beside it
            text = self._left[place].text
            if text.ids and shared(text, left.text) >= _MOSTLY * len(text.ids):
                oldest = place
        self._left[oldest] = left
        return (Copy(slot, oldest, len(left.text.ids)),)

    def _next_turn(self) -> int:
        self._turn += 1
        return self._turn


def worth_waiting(prompt: Text, cached: int, other: Text, read: int) -> bool:
    """Whether a prompt, of which so much is cached, should wait for what another one, of which so
    much is read, has still to read of their common beginning."""
    common = shared(other, prompt)
    return common > read and common >= cached + _WORTH_COPYING


def shared(text: Text, prompt: Text) -> int:
    """How many first tokens of a prompt a text has too, but for the prompt's last."""
    if text.salt != prompt.salt:
        return 0
    one, other = text.ids, prompt.ids
    longest = min(len(one), len(other) - 1)
    same = 0
    while same < longest and one[same : same + _BLOCK] == other[same : same + _BLOCK]:
        same += _BLOCK
    block = range(same, min(same + _BLOCK, longest))
    return next((index for index in block if one[index] != other[index]), min(block.stop, longest))


def _begins(longer: Text, shorter: Text) -> bool:
    return longer.salt == shorter.salt and longer.ids[: len(shorter.ids)] == shorter.ids
