"""From ids to the parts of a turn: what the model says, what it thinks, which tools it calls."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from gemma_server.text.chat import ToolCall
from gemma_server.text.detokenizer import TextStream
from gemma_server.text.notation import QUOTE, plain, read_call
from gemma_server.text.tokenizer import NO_TAGS, Tokenizer

_CHANNEL = "thought"  # its name stands in front of a thought
_HEADER = f"{_CHANNEL}\n"


class Said(NamedTuple):
    """The next part of a turn."""

    text: str = ""
    thought: str = ""
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Reading:
    """How the tags in an answer are read."""

    calls: bool = False  # whether the model may call tools; if not, a call is text
    only_one: bool = False  # the answer ends with its first call
    names: frozenset[str] = frozenset()  # of tools that are called in JSON, where no tags are
    trims: bool = True  # the white space behind thoughts and calls


class _Part(Enum):
    CONTENT = auto()
    THOUGHT = auto()
    CALL = auto()


class TurnStream:
    """Reads one answer id by id. The tags are control tokens, so no text can be one.

    The joined results of `push` and `close` do not depend on how text is split into ids. What is no
    call, because it is cut or malformed, is content as the model wrote it, tags included.

    `prompt` is what the answer continues, maybe in the middle of a thought. Without a `reading` all
    of the answer is content.
    """

    def __init__(
        self,
        content: TextStream,
        tokenizer: Tokenizer,
        reading: Reading | None = None,
        prompt: Sequence[int] = (),
    ) -> None:
        self._content, self._tokenizer = content, tokenizer
        self._reading = reading or Reading()
        self._tags = tokenizer.tags if reading else NO_TAGS
        self._part = _Part.CONTENT
        self._thought = _Thought()
        self._call = _Call(tokenizer)
        self._has_called = False
        if reading and is_in_thought(tokenizer, prompt):
            is_named = prompt[-1] != self._tags.thought.begin
            self._part, self._thought = _Part.THOUGHT, _Thought(is_named=is_named)

    @property
    def in_content(self) -> bool:
        """Whether the next id is part of the content, unless it is a tag."""
        return self._part is _Part.CONTENT

    @property
    def stopped(self) -> bool:
        """A stop string was found, or the only call is complete; push no more."""
        return self._content.stopped or (self._has_called and self._reading.only_one)

    @property
    def decoded(self) -> int:
        """Characters of content so far, those held back included."""
        return self._content.decoded

    def push(self, token_id: int) -> Said:
        """Take one id; return what is now certain."""
        tags, part = self._tags, self._part
        if token_id == tags.call.begin:
            said = self._turn_to(_Part.CALL)
        elif token_id == tags.thought.begin:
            said = self._turn_to(_Part.THOUGHT)
        elif token_id == tags.thought.end and part is _Part.THOUGHT:
            said = self._turn_to(_Part.CONTENT)
        elif token_id == tags.call.end and part is _Part.CALL:
            self._call.is_whole = True
            said = self._turn_to(_Part.CONTENT)
        elif part is _Part.CONTENT:
            return Said(text=self._content.push(token_id))
        else:
            said = self._add(token_id)
        self._content.skip()
        return said

    def close(self) -> Said:
        """What is still held back, once no id will follow."""
        said = self._turn_to(_Part.CONTENT)
        return said._replace(text=said.text + self._content.close())

    def _add(self, token_id: int) -> Said:
        if self._part is _Part.THOUGHT:
            return Said(thought=self._thought.push(self._tokenizer.piece_bytes(token_id)))
        self._call.push(token_id)
        return Said()

    def _turn_to(self, part: _Part) -> Said:
        """End the part that goes on, and begin another."""
        if self._part is _Part.CONTENT:
            said = Said(text=self._content.close())
        elif self._part is _Part.THOUGHT:
            said = Said(thought=self._thought.close())
            self._trim()
        else:
            said = self._end_call()
        self._part = part
        if part is _Part.THOUGHT:
            self._thought = _Thought()
        elif part is _Part.CALL:
            self._call = _Call(self._tokenizer)
        return said

    def _trim(self) -> None:
        if self._reading.trims:
            self._content.trim()

    def _end_call(self) -> Said:
        call = self._call.read() if self._reading.calls else None
        if call is None:
            return Said(text=self._content.add(self._call.as_written()))
        self._has_called = True
        self._trim()
        return Said(calls=(call,))


def is_in_thought(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Whether a prompt ends in a thought of the model's."""
    begin, end = tokenizer.tags.thought
    marks = (begin, end, tokenizer.start_of_turn_id)
    last = next((token_id for token_id in reversed(prompt) if token_id in marks), None)
    return last is not None and last == begin


class _Thought:
    """The text of a thought, without the channel's name and the white space behind it."""

    def __init__(self, *, is_named: bool = False) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._is_named = is_named
        self._held = ""

    def push(self, data: bytes) -> str:
        """More of it, but for what may turn out to be the name or the end."""
        return self._take(self._decoder.decode(data))

    def close(self) -> str:
        """The rest."""
        rest = self._take(self._decoder.decode(b"", final=True))
        if not self._is_named and self._held.strip() != _CHANNEL:
            rest += self._held.rstrip()  # it began like the name
        return rest

    def _take(self, text: str) -> str:
        text = self._held + text
        if not self._is_named:
            if _HEADER.startswith(text):
                self._held = text
                return ""
            text, self._is_named = text.removeprefix(_HEADER), True
        shown = text.rstrip()
        self._held = text[len(shown) :]
        return shown


class _Call:
    """What the model writes between the tags of a call."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts = [bytearray()]  # between quotes
        self.is_whole = False  # its end has come

    def push(self, token_id: int) -> None:
        """More of it."""
        if token_id == self._tokenizer.tags.quote:
            self._texts.append(bytearray())
        else:
            self._texts[-1] += self._tokenizer.piece_bytes(token_id)

    def read(self) -> ToolCall | None:
        """The call, if it is a whole and valid one."""
        return read_call(QUOTE.join(map(plain, self._decoded()))) if self.is_whole else None

    def as_written(self) -> str:
        """All of it as text."""
        tags = self._tokenizer.family.tags
        assert tags is not None
        end = tags.call.end if self.is_whole else ""
        return f"{tags.call.begin}{tags.quote.join(self._decoded())}{end}"

    def _decoded(self) -> list[str]:
        return [text.decode("utf-8", errors="replace") for text in self._texts]
