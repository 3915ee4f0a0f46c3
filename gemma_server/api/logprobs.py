"""Logprobs as clients expect them: the model's own, whatever the sampling options."""

import codecs
from collections.abc import Iterable, Sequence

from typing_extensions import TypedDict

from gemma_server.engine.request import Logprobs, Token
from gemma_server.text.tokenizer import Tokenizer


class TokenName(TypedDict):
    """A token as text, and as the bytes it stands for."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TokenName):
    """A sampled token, and the likeliest tokens at its position."""

    top_logprobs: list[TokenName]


class TextLogprobs(TypedDict):
    """Lists over the tokens of a text, as in OpenAI's completions. A prompt's first token has no
    logprob."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


Scored = tuple[int, Logprobs | None]  # a token's id; a prompt's first one has no logprobs


def scored(tokens: Iterable[Token]) -> list[Scored]:
    """The tokens of an answer with their logprobs."""
    return [(token.id, token.logprobs) for token in tokens]


def entries(tokenizer: Tokenizer, tokens: Iterable[Token]) -> list[TokenLogprob]:
    """One object a token, as OpenAI's chat and Ollama have them."""
    return [
        {
            **_entry(tokenizer, token.id, token.logprobs.logprob),
            "top_logprobs": [_entry(tokenizer, *pair) for pair in token.logprobs.top],
        }
        for token in tokens
        if token.logprobs is not None
    ]


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> TokenName:
    name, data = tokenizer.token_name(token_id), tokenizer.piece_bytes(token_id)
    return {"token": name, "logprob": logprob, "bytes": list(data)}


class TextOffsets:
    """Tracks where in the text of one choice each token begins, and makes the lists of OpenAI's
    completions."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._characters = 0

    def lists(self, tokens: Sequence[Scored]) -> TextLogprobs:
        """The lists for the next tokens of the choice."""
        return {
            "tokens": [self._tokenizer.token_name(token_id) for token_id, _ in tokens],
            "token_logprobs": [None if own is None else own.logprob for _, own in tokens],
            "top_logprobs": [self._top(token_id, own) for token_id, own in tokens],
            "text_offset": [self._place(token_id) for token_id, _ in tokens],
        }

    def _top(self, token_id: int, own: Logprobs | None) -> dict[str, float] | None:
        """The likeliest tokens by name; the token itself is always among them."""
        if own is None:
            return None
        pairs = (*own.top, (token_id, own.logprob))
        return {self._tokenizer.token_name(index): logprob for index, logprob in pairs}

    def _place(self, token_id: int) -> int:
        begin = self._characters
        self._characters += len(self._decoder.decode(self._tokenizer.piece_bytes(token_id)))
        return begin
