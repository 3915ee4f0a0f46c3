"""Texts turned into the ids of a prompt that fits."""

from gemma_server.api import heavy
from gemma_server.api.truncation import Truncation
from gemma_server.serving.model import GenerativeModel


def encode_prompt(
    loaded: GenerativeModel, text: str, truncation: Truncation | None = None
) -> list[int]:
    """`<bos>` and the ids of the text. What cannot fit is refused before it is encoded, unless it
    may be truncated.

    Raises:
        PromptRefused: it is not valid, or too long.
        Overloaded: too many long texts wait to be encoded.
    """
    if truncation is None or truncation.room is None:
        loaded.refuse_what_cannot_fit([text])
    ids = heavy.run(len(text), lambda: loaded.tokenizer.encode(text))
    if truncation is not None:
        ids = truncation.ids(ids)
    loaded.engine.check_prompt(len(ids))
    return ids
