"""Chat templates, and Gemma's own, from messages straight to ids.

Gemma 1 to 3 have the same turns; the markers' ids differ and come from the tokenizer. They have no
system turn: a system message opens the next user turn, as in Gemma 3's own template (Gemma 1's and
2's refuse it). Gemma 4 has one. Only the template makes control tokens: a turn marker in a message
stays text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal, Protocol

from gemma_server.text.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]
_GAP = "\n\n"  # between a system message and the user's, or two in one turn
_NAMES = {"user": "user", "assistant": "model"}
_NAMES4 = {"system": "system", **_NAMES}


@dataclass(frozen=True)
class Message:
    """One message of a chat."""

    role: Role
    content: str


class ChatTemplate(Protocol):
    """How a model's family writes a chat."""

    def encode(self, messages: Sequence[Message], *, goes_on: bool = False) -> list[int]:
        """`<bos>`, the turns, and the opening of the model's next turn.

        With `goes_on` the last message is the model's, and its turn stays open instead.

        Raises:
            PromptRefused: no prompt can be made of the messages.
        """

    def ids_after_answer(self) -> list[int]:
        """What stands between an answer and the next turn."""


class GemmaTemplate:
    """The template of Gemma 1, 2 and 3. Raises only InvalidText."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._newline = tokenizer.encode_literal("\n")

    def encode(self, messages: Sequence[Message], *, goes_on: bool = False) -> list[int]:
        """See `ChatTemplate`."""
        tokenizer = self._tokenizer
        ids = [tokenizer.bos_id]
        turns = _turns(messages)
        for turn in turns:
            words = tokenizer.encode_literal(f"{_NAMES[turn.role]}\n{turn.content}")
            ids += [tokenizer.start_of_turn_id, *words, *self.ids_after_answer()]
        if goes_on:
            assert turns[-1].role == "assistant"
            return ids[: -len(self.ids_after_answer())]
        return [*ids, tokenizer.start_of_turn_id, *tokenizer.encode_literal("model\n")]

    def ids_after_answer(self) -> list[int]:
        """See `ChatTemplate`."""
        return [self._tokenizer.end_of_turn_id, *self._newline]


class Gemma4Template:
    """The template of Gemma 4, without thinking. Raises only InvalidText.

    `opens_thought`: the larger sizes are told that they do not think by a thought without words;
    the others take its absence for that.

    Source: ai.google.dev/gemma/docs/core/prompt-formatting-gemma4
    """

    def __init__(self, tokenizer: Tokenizer, *, opens_thought: bool) -> None:
        self._tokenizer = tokenizer
        self._newline = tokenizer.encode_literal("\n")
        self._thought: list[int] = []
        start, end = map(tokenizer.control_id, ("<|channel>", "<channel|>"))
        if opens_thought and start is not None and end is not None:
            self._thought = [start, *tokenizer.encode_literal("thought\n"), end]

    def encode(self, messages: Sequence[Message], *, goes_on: bool = False) -> list[int]:
        """See `ChatTemplate`."""
        tokenizer = self._tokenizer
        ids = [tokenizer.bos_id]
        for message in _with_one_opening(messages):
            words = tokenizer.encode_literal(f"{_NAMES4[message.role]}\n{message.content.strip()}")
            ids += [tokenizer.start_of_turn_id, *words, *self.ids_after_answer()]
        if goes_on:
            return ids[: -len(self.ids_after_answer())]
        opening = tokenizer.encode_literal("model\n")
        return [*ids, tokenizer.start_of_turn_id, *opening, *self._thought]

    def ids_after_answer(self) -> list[int]:
        """See `ChatTemplate`."""
        return [self._tokenizer.end_of_turn_id, *self._newline]


def _with_one_opening(messages: Sequence[Message]) -> list[Message]:
    """The messages, those of the system before all others as one."""
    opening = list(takewhile(lambda message: message.role == "system", messages))
    if len(opening) < 2:
        return list(messages)
    words = _GAP.join(message.content.strip() for message in opening)
    return [Message("system", words), *messages[len(opening) :]]


def _turns(messages: Iterable[Message]) -> list[Message]:
    """Alternating turns of user and assistant; successive messages of a role become one turn."""
    turns: list[Message] = []
    system = ""
    for message in messages:
        if message.role == "system":
            system += message.content + _GAP
        elif message.role == "user":
            _append(turns, Message("user", system + message.content.strip()))
            system = ""
        else:
            _append(turns, Message("assistant", message.content.strip()))
    if system:  # no user message follows it
        _append(turns, Message("user", system.strip()))
    return turns


def _append(turns: list[Message], turn: Message) -> None:
    if turns and turns[-1].role == turn.role:
        turn = Message(turn.role, f"{turns.pop().content}{_GAP}{turn.content}")
    turns.append(turn)
