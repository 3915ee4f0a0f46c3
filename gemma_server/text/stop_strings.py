"""Finds the first of several strings in a text that comes character by character."""

from array import array
from collections.abc import Sequence


class StopStrings:
    """The automaton of Aho and Corasick ("Efficient string matching", CACM 18, 1975).

    A state is the longest end of the text that begins a stop string. A step takes constant time on
    average, however many strings there are. Built once, shared by all texts.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._next: dict[tuple[int, str], int] = {}
        self.depth = array("H", [0])  # characters of each state
        self.found = array("H", [0])  # characters of the longest stop string that ends there, or 0
        self._fallback = array("I", [0])  # the longest proper end that is a state, too
        for stop in stops:
            self._add(stop)
        self._link()

    def __bool__(self) -> bool:
        return len(self.depth) > 1

    def step(self, state: int, character: str) -> int:
        """The state after one more character; 0 is the beginning."""
        while (after := self._next.get((state, character))) is None:
            if state == 0:
                return 0
            state = self._fallback[state]
        return after

    def _add(self, stop: str) -> None:
        state = 0
        for character in stop:
            after = self._next.setdefault((state, character), len(self.depth))
            if after == len(self.depth):
                self.depth.append(self.depth[state] + 1)
                self.found.append(0)
                self._fallback.append(0)
            state = after
        self.found[state] = len(stop)

    def _link(self) -> None:
        """Set the fallbacks, from short states to long ones."""
        longer_last = sorted(self._next.items(), key=lambda item: self.depth[item[1]])
        for (state, character), after in longer_last:
            if state != 0:
                self._fallback[after] = self.step(self._fallback[state], character)
            self.found[after] = self.found[after] or self.found[self._fallback[after]]
