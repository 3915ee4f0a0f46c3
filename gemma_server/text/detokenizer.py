"""From ids to text that may be shown: whole characters, and no part of a stop string."""

import codecs
from collections.abc import Callable, Sequence


class TextStream:
    """Decodes one answer id by id.

    The joined results of `push` and `close` are the answer's text, cut before the stop string that
    is complete first. They do not depend on how the text is split into ids.
    """

    def __init__(self, piece_bytes: Callable[[int], bytes], stops: Sequence[str] = ()) -> None:
        self._piece_bytes = piece_bytes
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # decoded, but perhaps the beginning of a stop string
        self.stopped = False  # a stop string was found; push no more
        self.decoded = 0  # characters so far, those held back included

    def push(self, token_id: int) -> str:
        """Take one id; return the text that is now certain, often "" while some is held back."""
        return self._take(self._decoder.decode(self._piece_bytes(token_id)))

    def close(self) -> str:
        """The text still held back, once no id will follow; half a character becomes U+FFFD."""
        if self.stopped:
            return ""
        text = self._take(self._decoder.decode(b"", final=True))
        text, self._held = text + self._held, ""
        return text

    def _take(self, text: str) -> str:
        self.decoded += len(text)
        self._held += text
        matches = [
            (start + len(stop), start)
            for stop in self._stops
            if (start := self._held.find(stop)) >= 0
        ]
        if matches:
            # The stop string that ends first wins, and among those the longest.
            self.stopped = True
            _, start = min(matches)
            text, self._held = self._held[:start], ""
            return text
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
