"""Chat templates, and that of Gemma 1 to 3, from messages straight to ids.

The three have the same turns; the markers' ids differ and come from the tokenizer. They have no
system turn: a system message opens the next user turn, as in Gemma 3's own template (Gemma 1's and
2's refuse it). Only the template makes control tokens: a turn marker in a message stays text.
"""

from collections.abc import Sequence
from typing import Protocol

from gemma_server.text.chat import Message, Tool
from gemma_server.text.tokenizer import Tokenizer

GAP = "\n\n"  # between a system message and the user's, or two in one turn
_NAMES = {"user": "user", "assistant": "model"}


class ChatTemplate(Protocol):
    """How a model's family writes a chat."""

    @property
    def takes_tools(self) -> bool:
        """Whether it can write tools, their calls and their responses."""
        ...

    @property
    def takes_thinking(self) -> bool:
        """Whether it can ask the model to think."""
        ...

    def encode(
        self,
        messages: Sequence[Message],
        *,
        goes_on: bool = False,
        tools: Sequence[Tool] = (),
        thinks: bool = False,
    ) -> list[int]:
        """`<bos>`, the turns, and the opening of the model's next turn.

        With `goes_on` the last message is the model's, and its turn stays open instead.

        Raises:
            PromptRefused: no prompt can be made of the messages.
        """

    def ids_after_answer(self) -> list[int]:
        """What stands between an answer and the next turn."""


class GemmaTemplate:
    """The template of Gemma 1, 2 and 3. Raises only InvalidText."""

    takes_tools = takes_thinking = False

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._newline = tokenizer.encode_literal("\n")

    def encode(
        self,
        messages: Sequence[Message],
        *,
        goes_on: bool = False,
        tools: Sequence[Tool] = (),
        thinks: bool = False,
    ) -> list[int]:
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


def _turns(messages: Sequence[Message]) -> list[Message]:
    """Alternating turns of user and assistant; successive messages of a role become one turn. What
    the system says begins the user's next turn, or is one of the user's where none follows."""
    turns: list[Message] = []
    system = ""
    last = max((i for i, each in enumerate(messages) if each.role == "user"), default=-1)
    for index, message in enumerate(messages):
        content = message.content.strip()
        if message.role == "system" and index < last:
            system += message.content + GAP
        elif message.role == "assistant":
            _append(turns, Message("assistant", content))
        else:
            _append(turns, Message("user", system + content))
            system = ""
    return turns


def _append(turns: list[Message], turn: Message) -> None:
    if turns and turns[-1].role == turn.role:
        turn = Message(turn.role, f"{turns.pop().content}{GAP}{turn.content}")
    turns.append(turn)
