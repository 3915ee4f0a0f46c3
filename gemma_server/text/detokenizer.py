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
        self._state = 0  # of the automaton
        self._held = ""  # decoded, but perhaps the beginning of a stop string
        self.stopped = False  # a stop string was found; push no more
        self.decoded = 0  # characters so far, those held back included

    def push(self, token_id: int) -> str:
        """Take one id; return the text that is now certain, often "" while some is held back."""
        text = self._decoder.decode(self._piece_bytes(token_id))
        if self._ids_to_skip > 0:
            self._ids_to_skip -= 1
            self.decoded += len(text)
            return text
        return self._take(text)

    def close(self) -> str:
        """The text still held back, once no id will follow; half a character becomes U+FFFD."""
        if self.stopped:
            return ""
        text = self._take(self._decoder.decode(b"", final=True))
        text, self._held = text + self._held, ""
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
