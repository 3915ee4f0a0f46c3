"""Chat messages as OpenAI's and Ollama's clients send them, and the ids they become."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from gemma_server.api.fitting import Fitting
from gemma_server.errors import InvalidRequest, RequestError
from gemma_server.served import LoadedModel
from gemma_server.text.chat import Message, Role, encode_chat
from gemma_server.web.timing import timed

MAX_MESSAGES = 4096
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
    text: str = ""


class ChatMessage(BaseModel):
    """What somebody said. Names and such are ignored; pictures and tool calls are refused."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    images: list[object] | None = None
    tool_calls: list[object] | None = None


Messages = Annotated[list[ChatMessage], Field(max_length=MAX_MESSAGES)]


def encode_messages(
    loaded: LoadedModel, messages: Sequence[ChatMessage], fitting: Fitting
) -> list[int]:
    """The model's template around the messages, as ids; what is dropped are whole messages, and
    never the system's.

    Raises:
        InvalidRequest: one of them cannot be; `param` says which. Or they are too long.
    """
    with timed("tokenize"):
        plain = [_plain(index, message) for index, message in enumerate(messages)]
        try:
            ids = fitting.items(
                plain,
                lambda messages: encode_chat(loaded.tokenizer, messages),
                keep=lambda message: message.role == "system",
            )
            loaded.engine.check_prompt(len(ids))
        except RequestError as error:
            error.param = "messages"
            raise
    return ids


def _plain(index: int, message: ChatMessage) -> Message:
    where = f"messages[{index}]"
    if message.role == "tool":
        raise _unsupported(f"{where}.role", "the role tool")
    if message.tool_calls:
        raise _unsupported(f"{where}.tool_calls", "a tool call")
    if message.images:
        raise _unsupported(f"{where}.images", "an image")
    content = message.content or ""
    if isinstance(content, list):
        for number, part in enumerate(content):
            if part.type != "text":
                raise _unsupported(f"{where}.content[{number}]", f"content of type {part.type!r}")
        content = "".join(part.text for part in content)
    return Message(_ROLES[message.role], content)


def _unsupported(param: str, what: str) -> InvalidRequest:
    message = f"{param}: {what[:100]} is not supported by this server; it takes text alone"
    return InvalidRequest(message, param=param, code="unsupported_field")
