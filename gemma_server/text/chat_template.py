"""Gemma's chat template, from messages straight to ids.

All three generations are taught the same turns; their ids differ and come from the tokenizer.
Gemma has no system turn: what the system says opens the next user turn, as Gemma 3's own template
does (Gemma 1's and 2's refuse it). Only the template makes control tokens: a turn marker that
somebody typed stays text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from gemma_server.text.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]
_GAP = "\n\n"  # between what the system says and the user's words
_NAMES = {"user": "user", "assistant": "model"}


@dataclass(frozen=True)
class Message:
    """What somebody said."""

    role: Role
    content: str


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], *, goes_on: bool = False
) -> list[int]:
    """`<bos>`, the turns, and the opening of the model's next turn.

    With `goes_on` the last message is the model's, and its turn stays open instead.

    Raises:
        InvalidText: a message is not valid Unicode.
    """
    start, end = tokenizer.start_of_turn_id, tokenizer.end_of_turn_id
    newline = tokenizer.encode_literal("\n")
    ids = [tokenizer.bos_id]
    turns = _turns(messages)
    for turn in turns:
        words = tokenizer.encode_literal(f"{_NAMES[turn.role]}\n{turn.content}")
        ids += [start, *words, end, *newline]
    if goes_on:
        assert turns[-1].role == "assistant"
        return ids[: -1 - len(newline)]
    return [*ids, start, *tokenizer.encode_literal("model\n")]


def _turns(messages: Iterable[Message]) -> list[Message]:
    """Turns of user and assistant in alternation; neighbours of one role become one turn."""
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
    if system:  # nobody speaks after it
        _append(turns, Message("user", system.strip()))
    return turns


def _append(turns: list[Message], turn: Message) -> None:
    if turns and turns[-1].role == turn.role:
        turn = Message(turn.role, f"{turns.pop().content}{_GAP}{turn.content}")
    turns.append(turn)
