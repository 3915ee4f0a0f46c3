"""vLLM's routes for tokens alone: /tokenize and /detokenize."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator
from typing_extensions import TypedDict

from gemma_server.api import heavy
from gemma_server.api.caller import Caller
from gemma_server.api.chat import ChatMessage, Wanted, plain_messages, size_of
from gemma_server.api.errors import prompt_in
from gemma_server.api.openai.schema import MAX_IDS, check_end
from gemma_server.api.openai.thinking import Effort, TemplateOptions, wants_thoughts
from gemma_server.api.operation import Operation
from gemma_server.api.schemas import ForeignBody, Items, ModelBody, check_tokens
from gemma_server.api.timing import timed
from gemma_server.api.tools import Tools, declared
from gemma_server.errors import InvalidRequest
from gemma_server.serving.model import GenerativeModel, LoadedModel
from gemma_server.serving.models import Models


class TokenizeBody(ForeignBody, ModelBody):
    """POST /tokenize, as in vLLM: a text, or messages as a chat has them."""

    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "return_token_strs": (False,),
        "chat_template": ("",),
    }

    prompt: str | None = None
    messages: Annotated[Items[ChatMessage], Field(min_length=1, max_length=4096)] | None = None
    add_special_tokens: bool = True  # of a text; a chat's template has them
    continue_final_message: bool = False
    add_generation_prompt: bool | None = None
    tools: Tools = Field([])
    chat_template_kwargs: TemplateOptions = TemplateOptions()
    reasoning_effort: Effort | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("either prompt or messages", param="prompt")
        if self.messages is not None:
            check_end(self.messages, self.continue_final_message, self.add_generation_prompt)
        return self


class DetokenizeBody(ForeignBody, ModelBody):
    """POST /detokenize, as in vLLM."""

    tokens: Annotated[Items[int], Field(max_length=MAX_IDS)]


class TokenIds(TypedDict):
    """POST /tokenize."""

    tokens: list[int]
    count: int
    max_model_len: int


class TokensText(TypedDict):
    """POST /detokenize."""

    prompt: str


def tokenize(body: TokenizeBody, models: Models, caller: Caller) -> TokenIds:
    """The ids of a text's tokens."""
    loaded = caller.hold(models.resolve_any, body.model)
    with timed(caller.stages, "tokenize"):
        if body.messages is None:
            ids = _text_ids(loaded, body)
        else:
            ids = _chat_ids(caller.hold(models.resolve, body.model), body)
    return {"tokens": ids, "count": len(ids), "max_model_len": loaded.context_length}


def _text_ids(loaded: LoadedModel, body: TokenizeBody) -> list[int]:
    text = body.prompt or ""
    with prompt_in("prompt"):
        ids = heavy.run(len(text), lambda: loaded.tokenizer.encode(text))
    return ids[0 if body.add_special_tokens else 1 :]


def _chat_ids(loaded: GenerativeModel, body: TokenizeBody) -> list[int]:
    """As a chat has them, however long."""
    messages = plain_messages(loaded, body.messages or [])
    thinks = wants_thoughts(body.chat_template_kwargs, body.reasoning_effort, loaded)
    wanted = Wanted(declared(loaded, body.tools), thinks, body.continue_final_message)
    with prompt_in("messages"):
        return heavy.run(size_of(messages, wanted), lambda: wanted.encode(loaded.chat, messages))


def detokenize(body: DetokenizeBody, models: Models, caller: Caller) -> TokensText:
    """The text of tokens."""
    loaded = caller.hold(models.resolve_any, body.model)
    check_tokens(body.tokens, loaded.tokenizer.vocab_size, "tokens")
    return {"prompt": loaded.tokenizer.decode(body.tokens)}


OPERATIONS: tuple[Operation[Any], ...] = (
    Operation(
        "tokenize",
        "A text's token ids",
        tokenize,
        path="/tokenize",
        frame="tokenize",
        body=TokenizeBody,
        answer=TokenIds,
    ),
    Operation(
        "detokenize",
        "The text of token ids",
        detokenize,
        path="/detokenize",
        body=DetokenizeBody,
        answer=TokensText,
    ),
)
