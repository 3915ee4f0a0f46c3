"""From ids to text that may be shown: whole characters, and no part of a stop string."""

import codecs
from collections.abc import Callable

from gemma_server.text.stop_strings import StopStrings


class TextStream:
    """Decodes one answer id by id.

    The joined results of `push` and `close` are the answer's text, cut before the stop string that
    is complete first; of several that are complete at once, the longest counts. They do not depend
    on how the text is split into ids. The text of the first `min_tokens` ids belongs to no stop
    string.
    """

    def __init__(
        self,
        piece_bytes: Callable[[int], bytes],
        stops: StopStrings | None = None,
        min_tokens: int = 0,
    ) -> None:
        self._piece_bytes = piece_bytes
        self._stops = stops or None
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._ids_to_skip = min_tokens
        self._trims = False
        self._state = 0  # of the automaton
        self._held = ""  # decoded, but perhaps the beginning of a stop string
        self.stopped = False  # a stop string was found; push no more
        self.decoded = 0  # characters so far, those held back included

    def push(self, token_id: int) -> str:
        """Take one id; return the text that is now certain, often "" while some is held back."""
        text = self._decoder.decode(self._piece_bytes(token_id))
        if self._trims:
            text = text.lstrip()
            self._trims = not text
        if self._ids_to_skip > 0:
            self.skip()
            self.decoded += len(text)
            return text
        return self._take(text)

    def skip(self) -> None:
        """Take an id that is no part of the text."""
        self._ids_to_skip = max(0, self._ids_to_skip - 1)

    def add(self, text: str) -> str:
        """Take text that no id stands for; return as `push` does."""
        return self._take(text)

    def trim(self) -> None:
        """Leave out the white space with which the text goes on."""
        self._trims = True

    def close(self) -> str:
        """The text still held back, which does not go on; half a character becomes U+FFFD."""
        if self.stopped:
            return ""
        text = self._take(self._decoder.decode(b"", final=True))
        text, self._held, self._state = text + self._held, "", 0
        return text

    def _take(self, text: str) -> str:
        self.decoded += len(text)
        if self._stops is None:
            return text
        for index, character in enumerate(text):
            self._state = self._stops.step(self._state, character)
            if found := self._stops.found[self._state]:
                self.stopped = True
                whole, self._held = self._held + text[: index + 1], ""
                return whole[:-found]
        whole = self._held + text
        cut = len(whole) - self._stops.depth[self._state]
        self._held = whole[cut:]
        return whole[:cut]
