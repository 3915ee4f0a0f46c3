"""Finds the first of several strings in a text that comes character by character."""

from collections import deque
from collections.abc import Sequence


class StopStrings:
    """The automaton of Aho and Corasick ("Efficient string matching", CACM 18, 1975).

    A state is the longest end of the text that begins a stop string. A step takes constant time on
    average, however many strings there are. Built once, shared by all texts.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._next: list[dict[str, int]] = [{}]
        self.depth = [0]  # characters of each state
        self.found = [0]  # characters of the longest stop string that ends in each state; 0: none
        self._fallback = [0]  # the longest proper end that is a state, too
        for stop in stops:
            self._add(stop)
        self._link()

    def __bool__(self) -> bool:
        return len(self.depth) > 1

    def step(self, state: int, character: str) -> int:
        """The state after one more character; 0 is the beginning."""
        while character not in self._next[state]:
            if state == 0:
                return 0
            state = self._fallback[state]
        return self._next[state][character]

    def _add(self, stop: str) -> None:
        state = 0
        for character in stop:
            if character not in self._next[state]:
                self._next[state][character] = len(self.depth)
                self._next.append({})
                self.depth.append(self.depth[state] + 1)
                self.found.append(0)
                self._fallback.append(0)
            state = self._next[state][character]
        self.found[state] = len(stop)

    def _link(self) -> None:
        """Set the fallbacks, from short states to long ones."""
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            for character, longer in self._next[state].items():
                self._fallback[longer] = self.step(self._fallback[state], character)
                self.found[longer] = self.found[longer] or self.found[self._fallback[longer]]
                waiting.append(longer)
