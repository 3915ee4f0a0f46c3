"""Tokens that an answer may go on with, foreseen from the text itself, and how many to try.

A draft is fed behind the last token in the same step, and the model samples after each token of it.
What it samples counts, so a draft changes no text: tokens that come true are steps saved.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_LEAST = 3  # tokens that have to be the same as somewhere before
_FAR = 16  # tokens are compared at most
_CANDIDATES = 8  # places are compared at most, the latest
_CLASSES = ((_LEAST, 0.35), (5, 0.6), (9, 0.85))  # lengths of a match, and how often it comes true
_SHARE = 0.2  # the newest outcome's weight in a running mean
_RETURN = 0.02  # of the way back to the first estimate, for each match that was not tried
_GAIN = 1.03  # how much faster a draft has to look
_GUESS = 1.3  # how much longer a step of twice the rows may take, until one was measured


class Foreseen(NamedTuple):
    """A token of a draft: how likely it is to come true once those before it have, and which
    tokens may follow it."""

    id: int
    chance: float
    mask: bytes | None = None


class Chance:
    """How often a token of one kind of draft comes true: a running mean.

    The newest outcome weighs `share` in it; with none it goes `back` of the way to what it was
    first.
    """

    def __init__(self, first: float, share: float = _SHARE, back: float = _RETURN) -> None:
        self._first = self.value = first
        self._share, self._back = share, back

    def learn(self, accepted: int, drafted: int) -> None:
        """So many tokens came true, of those that were tried; none was tried: what made it small
        may be over."""
        if drafted == 0:
            self.value += self._back * (self._first - self.value)
        for came_true in [True] * accepted + [False] * (accepted < drafted):
            self.value += self._share * (came_true - self.value)


class Lookup:
    """Drafts of one answer: what followed in prompt and answer where they read the same before.

    The longer the match, the likelier it goes on; how often it did is kept for each length.
    """

    def __init__(self, prompt: Sequence[int], longest: int) -> None:
        self._ids: npt.NDArray[Any] = np.zeros(len(prompt) + longest, np.int32)
        self._ids[: len(prompt)] = prompt
        self._count = len(prompt)
        self._chances = [Chance(first) for _, first in _CLASSES]
        self.chance: Chance | None = None  # of the last match

    def push(self, token: int) -> None:
        """The answer has one more token."""
        self._ids[self._count] = token
        self._count += 1

    def propose(self, most: int) -> list[Foreseen]:
        """Up to `most` tokens; none where the text was never like this."""
        ids = self._ids[: self._count]
        follows, length = self._longest_match(ids)
        self.chance = None
        if length < _LEAST:
            return []
        self.chance = self._chances[sum(length >= least for least, _ in _CLASSES) - 1]
        period = self._count - follows  # a text that repeats itself goes on to
        value = self.chance.value
        return [Foreseen(int(ids[follows + i % period]), value) for i in range(most)]

    def _longest_match(self, ids: npt.NDArray[Any]) -> tuple[int, int]:
        """Where the text goes on behind the place that is most like its end, and how many tokens
        are the same."""
        if len(ids) <= _LEAST:
            return 0, 0
        a, b, c = ids[-_LEAST:]
        same = (ids[:-3] == a) & (ids[1:-2] == b) & (ids[2:-1] == c)
        best = (0, 0)
        for start in np.flatnonzero(same)[-_CANDIDATES:][::-1]:
            follows = int(start) + _LEAST
            far = min(_FAR, follows)
            differs = np.flatnonzero((ids[follows - far : follows] != ids[-far:])[::-1])
            length = int(differs[0]) if len(differs) else far
            if length > best[1]:
                best = follows, length
        return best


def allot(
    drafts: Sequence[Sequence[Foreseen]],
    counts: Sequence[int],
    step_s: Callable[[int], float | None],
) -> list[int]:
    """How many tokens of each row's draft to try.

    There are programs for `counts` rows, and a step of so many takes `step_s`. What counts are
    tokens a second: every row gives one, and each token of a draft gives one if it and those
    before it come true.
    """
    rows = len(drafts)
    gains = sorted(
        (-product, row, index)
        for row, draft in enumerate(drafts)
        for index, product in enumerate(accumulate((each.chance for each in draft), mul))
    )
    able = [count for count in counts if count >= rows]
    best, chosen, seconds = 0.0, 0, step_s(able[0]) or 1.0
    for before, count in zip((able[0], *able), able, strict=False):
        seconds = step_s(count) or seconds * (1 if count == before else _GUESS)
        tried = min(count - rows, len(gains))
        speed = (rows - sum(gain for gain, _, _ in gains[:tried])) / seconds
        if speed > best * _GAIN:
            best, chosen = speed, tried
    allotted = [0] * rows
    for _, row, _ in gains[:chosen]:
        allotted[row] += 1
    return allotted


def worth_asking(
    chances: Sequence[float],
    rows: int,
    most: int,
    step_s: Callable[[int], float],
    ask_s: float,
) -> int:
    """How many tokens of a draft model to ask for, for each of some of the rows; 0: none.

    A step of so many rows takes `step_s`, and each token asked for takes `ask_s`. `chances` are
    those that a token comes true, of the rows that would be asked for.
    """
    speeds = []
    for count in range(most + 1):
        gain = sum(chance**place for chance in chances for place in range(1, count + 1))
        seconds = step_s(rows + len(chances) * count) + count * ask_s
        speeds.append((rows + gain) / seconds if seconds > 0 else 0.0)
    best = max(range(most + 1), key=speeds.__getitem__)
    return best if speeds[best] > speeds[0] * _GAIN else 0
