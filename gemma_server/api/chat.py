"""Chat messages as OpenAI's and Ollama's clients send them, and the ids they become."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from gemma_server.api import heavy
from gemma_server.api.errors import prompt_in
from gemma_server.api.schemas import Items
from gemma_server.api.timing import Stages, timed
from gemma_server.api.tools import Calls, made
from gemma_server.api.truncation import Truncation
from gemma_server.errors import InvalidRequest
from gemma_server.serving.model import GenerativeModel
from gemma_server.text.chat import Message, Role, Tool, ToolCall
from gemma_server.text.chat_template import ChatTemplate

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
    """One message. Names and similar fields are ignored; images are refused."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[Items[TextPart], Field(max_length=MAX_PARTS)] | None = None
    images: Items[object] | None = None
    tool_calls: Calls | None = None
    tool_call_id: str | None = None
    tool_name: str | None = None  # Ollama's clients know calls by this
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # vLLM's newer name for it
    thinking: str | None = None  # Ollama's
    function_call: object = None

    @property
    def thought(self) -> str:
        """What the model thought before it spoke."""
        return self.reasoning_content or self.reasoning or self.thinking or ""


Messages = Annotated[Items[ChatMessage], Field(max_length=MAX_MESSAGES)]


@dataclass(frozen=True)
class Wanted:
    """What a chat's template is told beside the messages."""

    tools: tuple[Tool, ...] = ()
    thinks: bool = False
    goes_on: bool = False  # the model continues the last message, which is its own

    def encode(self, chat: ChatTemplate, messages: Sequence[Message]) -> list[int]:
        """The prompt's ids."""
        return chat.encode(messages, goes_on=self.goes_on, tools=self.tools, thinks=self.thinks)


def require_thinking(loaded: GenerativeModel, param: str) -> None:
    """Refuse a request to think that the model's template cannot pass on.

    Raises:
        InvalidRequest: naming `param`.
    """
    if not loaded.chat.takes_thinking:
        raise InvalidRequest(
            f"{param}: thinking is not supported by {loaded.name}; leave it out",
            param=param,
            code="unsupported_field",
        )


def encode_messages(
    loaded: GenerativeModel,
    messages: Sequence[ChatMessage],
    wanted: Wanted,
    truncation: Truncation,
    stages: Stages,
) -> list[int]:
    """The ids of the messages in the model's template. Truncation drops whole messages, but none
    of the system's.

    Raises:
        InvalidRequest: a message is not valid, and `param` names it; or they are too long.
    """
    with timed(stages, "tokenize"), prompt_in("messages"):
        plain = plain_messages(loaded, messages)
        if truncation.room is None:
            loaded.refuse_what_cannot_fit([message.content for message in plain])
        ids = heavy.run(
            size_of(plain, wanted),
            lambda: truncation.items(
                _with_responses(plain),
                lambda groups: wanted.encode(loaded.chat, list(chain.from_iterable(groups))),
                keep=lambda group: group[0].role == "system",
            ),
        )
        loaded.engine.check_prompt(len(ids))
    return ids


def size_of(messages: Sequence[Message], wanted: Wanted) -> int:
    """Characters, about, that the template writes."""
    tools = sum(len(str(tool)) for tool in wanted.tools)
    calls = sum(len(str(call)) for message in messages for call in message.calls)
    return tools + calls + sum(len(each.content) + len(each.thought) for each in messages)


def plain_messages(loaded: GenerativeModel, messages: Sequence[ChatMessage]) -> list[Message]:
    """The messages as templates take them.

    Raises:
        InvalidRequest: one is not valid, and `param` names it.
    """
    plain: list[Message] = []
    waiting: list[ToolCall] = []  # for their responses
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        _check_kind(where, message, loaded)
        content = _content(where, message)
        if message.role == "tool":
            plain.append(Message("tool", content, answers=_answered(where, message, waiting)))
        else:
            calls = made(f"{where}.tool_calls", message.tool_calls or ())
            waiting = list(calls)
            plain.append(Message(_ROLES[message.role], content, message.thought, calls))
    return plain


def _check_kind(where: str, message: ChatMessage, loaded: GenerativeModel) -> None:
    """Refuse what the model cannot be told, and calls that it did not make."""
    if message.role == "tool" and not loaded.chat.takes_tools:
        raise _unsupported(f"{where}.role", "the role tool")
    if message.tool_calls and not loaded.chat.takes_tools:
        raise _unsupported(f"{where}.tool_calls", "a tool call")
    if message.tool_calls and message.role != "assistant":
        param = f"{where}.tool_calls"
        raise InvalidRequest(f"{param}: the assistant calls tools, nobody else", param=param)
    if message.function_call:
        raise _unsupported(f"{where}.function_call", "a function call")
    if message.images:
        raise _unsupported(f"{where}.images", "an image")


def _answered(where: str, message: ChatMessage, waiting: list[ToolCall]) -> ToolCall:
    """The call that a tool's message answers: that of its id, or its name, or else the first."""
    call_id, name = message.tool_call_id, message.tool_name or message.name
    for index, call in enumerate(waiting):
        if call_id == call.id if call_id else name in (None, "", call.name):
            return waiting.pop(index)
    what = call_id or name or "one more"
    raise InvalidRequest(
        f"{where}: answers the call {what!r:.100}, which the assistant's last message did not make",
        param=where,
    )


def _with_responses(messages: Sequence[Message]) -> list[list[Message]]:
    """Each message with the tools' responses to it."""
    groups: list[list[Message]] = []
    for message in messages:
        if message.role == "tool":
            groups[-1].append(message)
        else:
            groups.append([message])
    return groups


def _content(where: str, message: ChatMessage) -> str:
    content = message.content or ""
    if isinstance(content, list):
        parts = [_text(f"{where}.content[{number}]", part) for number, part in enumerate(content)]
        content = "".join(parts)
    return content


def _text(where: str, part: TextPart) -> str:
    if part.type != "text":
        raise _unsupported(where, f"content of type {part.type!r}")
    if part.text is None:
        raise InvalidRequest(f"{where}.text: is missing", param=f"{where}.text")
    return part.text


def _unsupported(param: str, what: str) -> InvalidRequest:
    message = f"{param}: {what[:100]} is not supported by this server"
    return InvalidRequest(message, param=param, code="unsupported_field")
