"""A tokenizer with all of Gemma 4's control tokens, a fake that says what it is told, and chats in
OpenAI's form as templates take them."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from gemma_server.engine.fake import FakeRunner
from gemma_server.engine.request import SamplingParams, Token
from gemma_server.text.chat import Message, Tool, ToolCall
from gemma_server.text.family import GEMMA4
from gemma_server.text.sentencepiece_model import PieceType, model_from_pieces
from gemma_server.text.tokenizer import Tokenizer

_BASE = ("<pad>", "<eos>", "<bos>", "<unk>")
MARKERS = {
    piece: index for index, piece in enumerate(GEMMA4.markers, start=len(_BASE))
}  # ids by names


@cache
def gemma4_tokenizer() -> Tokenizer:
    """One token a byte, and the control tokens."""
    special = [*_BASE, *MARKERS]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    types = [PieceType.CONTROL] * len(special) + [PieceType.BYTE] * 256 + [PieceType.NORMAL]
    types[3] = PieceType.UNKNOWN
    return Tokenizer(model_from_pieces(pieces, [0.0] * len(pieces), list(map(int, types))))


class SayingRunner(FakeRunner):
    """Says a turn, in which control tokens are spelled; another one after a tool's response.
    Without a turn it repeats the prompt, as its base does."""

    def __init__(self, slots: int, *, says: str = "", then: str = "", **options: Any) -> None:
        super().__init__(slots, **options)
        self.says, self.then = says, then

    def _sample(self, slot: int, sampling: SamplingParams, top: int | None) -> Token:
        token = super()._sample(slot, sampling, top)
        length = self._prompt_length[slot]
        has_response = MARKERS["<|tool_response>"] in self._cached[slot][:length]
        turn = self.then if has_response and self.then else self.says
        if not turn:
            return token
        tokenizer = gemma4_tokenizer()
        said = dict(enumerate(tokenizer.encode(turn)[1:]))
        self._last[slot] = said.get(len(self._cached[slot]) - length, tokenizer.eos_id)
        return Token(self._last[slot], token.logprobs)


def shown(ids: Iterable[int]) -> str:
    """The ids as text, control tokens by their names."""
    tokenizer = gemma4_tokenizer()
    first_byte = len(_BASE) + len(MARKERS)
    parts = (
        tokenizer.piece(index).encode() if index < first_byte else tokenizer.piece_bytes(index)
        for index in ids
    )
    return b"".join(parts).decode()


def messages_of(documents: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Messages; the arguments of calls are objects."""
    messages: list[Message] = []
    calls: dict[str, ToolCall] = {}
    for document in documents:
        own = tuple(map(_call, document.get("tool_calls", ())))
        calls |= {call.id: call for call in own}
        answers = calls.get(document.get("tool_call_id", ""))
        thought = document.get("reasoning_content", "")
        role, content = document["role"], document["content"]
        messages.append(Message(role, content, thought, own, answers))
    return messages


def tools_of(documents: Iterable[Mapping[str, Any]]) -> list[Tool]:
    """The functions."""
    return [Tool(**document["function"]) for document in documents]


def _call(document: Mapping[str, Any]) -> ToolCall:
    function = document["function"]
    return ToolCall(function["name"], function["arguments"], document["id"])
