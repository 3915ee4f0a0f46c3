"""A text's tokens, without a model."""

from typing_extensions import TypedDict

from gemma_server.api.schemas import ForeignBody, ModelBody
from gemma_server.serving.model import LoadedModel


class TokenizeBody(ForeignBody, ModelBody):
    """/tokenize, as vLLM has it."""

    prompt: str
    add_special_tokens: bool = True


class TokenIds(TypedDict):
    """Its answer."""

    tokens: list[int]
    count: int
    max_model_len: int


def token_ids(body: TokenizeBody, loaded: LoadedModel) -> TokenIds:
    """The ids of the prompt's tokens."""
    ids = loaded.tokenizer.encode(body.prompt)[0 if body.add_special_tokens else 1 :]
    return {"tokens": ids, "count": len(ids), "max_model_len": loaded.engine.context_length}
