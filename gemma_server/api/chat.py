"""Chat messages as OpenAI's and Ollama's clients send them, and the ids they become."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from gemma_server.api import heavy
from gemma_server.api.errors import prompt_in
from gemma_server.api.schemas import Items
from gemma_server.api.timing import Stages, timed
from gemma_server.api.truncation import Truncation
from gemma_server.errors import InvalidRequest
from gemma_server.serving.model import GenerativeModel
from gemma_server.text.chat_template import Message, Role

MAX_MESSAGES = 4096
MAX_PARTS = 4096  # of one message
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name for it
    "user": "user",
    "assistant": "assistant",
}


class TextPart(BaseModel):
    """A part of a message. Only text is supported."""

    model_config = ConfigDict(extra="ignore")

    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    """One message. Names and similar fields are ignored; images and tool calls are refused."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[Items[TextPart], Field(max_length=MAX_PARTS)] | None = None
    images: Items[object] | None = None
    tool_calls: Items[object] | None = None
    function_call: object = None


Messages = Annotated[Items[ChatMessage], Field(max_length=MAX_MESSAGES)]


def encode_messages(
    loaded: GenerativeModel,
    messages: Sequence[ChatMessage],
    truncation: Truncation,
    stages: Stages,
    *,
    goes_on: bool,
) -> list[int]:
    """The ids of the messages in the model's template. Truncation drops whole messages, but none
    of the system's. With `goes_on` the model continues the last message, which is its own.

    Raises:
        InvalidRequest: a message is not valid, and `param` names it; or they are too long.
    """
    with timed(stages, "tokenize"), prompt_in("messages"):
        plain = plain_messages(messages)
        texts = [message.content for message in plain]
        if truncation.room is None:
            loaded.refuse_what_cannot_fit(texts)
        ids = heavy.run(
            sum(map(len, texts)),
            lambda: truncation.items(
                plain,
                lambda messages: loaded.chat.encode(messages, goes_on=goes_on),
                keep=lambda message: message.role == "system",
            ),
        )
        loaded.engine.check_prompt(len(ids))
    return ids


def plain_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """The messages as templates take them.

    Raises:
        InvalidRequest: one is not valid, and `param` names it.
    """
    return [_plain(index, message) for index, message in enumerate(messages)]


def _plain(index: int, message: ChatMessage) -> Message:
    where = f"messages[{index}]"
    if message.role == "tool":
        raise _unsupported(f"{where}.role", "the role tool")
    if message.tool_calls:
        raise _unsupported(f"{where}.tool_calls", "a tool call")
    if message.function_call:
        raise _unsupported(f"{where}.function_call", "a function call")
    if message.images:
        raise _unsupported(f"{where}.images", "an image")
    content = message.content or ""
    if isinstance(content, list):
        parts = [_text(f"{where}.content[{number}]", part) for number, part in enumerate(content)]
        content = "".join(parts)
    return Message(_ROLES[message.role], content)


def _text(where: str, part: TextPart) -> str:
    if part.type != "text":
        raise _unsupported(where, f"content of type {part.type!r}")
    if part.text is None:
        raise InvalidRequest(f"{where}.text: is missing", param=f"{where}.text")
    return part.text


def _unsupported(param: str, what: str) -> InvalidRequest:
    message = f"{param}: {what[:100]} is not supported by this server; it takes text alone"
    return InvalidRequest(message, param=param, code="unsupported_field")
