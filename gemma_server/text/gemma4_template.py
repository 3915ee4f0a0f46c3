"""The chat template of Gemma 4, from messages straight to ids.

Only the template makes control tokens: a marker in a message stays text. Raises only InvalidText.

Source: ai.google.dev/gemma/docs/core/prompt-formatting-gemma4, and Google's own template of
2026-07-09.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from gemma_server.text.chat import Message, Tool
from gemma_server.text.chat_template import GAP
from gemma_server.text.family import GEMMA4, GEMMA4_TAGS, THINK, THOUGHT, Span
from gemma_server.text.notation import QUOTE, plain, quoted, sorted_items, written, written_call
from gemma_server.text.tokenizer import Tokenizer

_NAMES = {"system": "system", "user": "user", "assistant": "model"}
_OF_SCHEMAS = ("description", "type", "properties", "required", "nullable")
_CHANNEL = "thought\n"  # its name


class Gemma4Template:
    """Writes chats, tools and thoughts.

    `opens_thought`: the larger sizes are told that they do not think by a thought without words;
    the others take its absence for that.
    """

    takes_tools = takes_thinking = True

    def __init__(self, tokenizer: Tokenizer, *, opens_thought: bool) -> None:
        self._tokenizer = tokenizer
        self._opens_thought = opens_thought

    def encode(
        self,
        messages: Sequence[Message],
        *,
        goes_on: bool = False,
        tools: Sequence[Tool] = (),
        thinks: bool = False,
    ) -> list[int]:
        """See `ChatTemplate`."""
        chat = _Chat(self._tokenizer)
        messages = _with_one_opening(messages)
        has_opening = bool(messages) and messages[0].role == "system"
        if has_opening or tools or thinks:
            chat.open_with(messages[0].content if has_opening else "", tools, thinks=thinks)
        chat.turns(messages[has_opening:], goes_on=goes_on)
        if not goes_on:
            chat.open_turn(opens_thought=self._opens_thought, thinks=thinks)
        return chat.ids()

    def ids_after_answer(self) -> list[int]:
        """See `ChatTemplate`."""
        return [self._tokenizer.end_of_turn_id, *self._tokenizer.encode_literal("\n")]


class _Chat:
    """The ids of one chat, as it is written."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids = [tokenizer.bos_id]
        self._text = ""  # since the last marker
        self._last = ""  # what the last message ended with, if it was a tool's call or response

    def ids(self) -> list[int]:
        """All of them."""
        self._flush()
        return self._ids

    def open_with(self, words: str, tools: Sequence[Tool], *, thinks: bool) -> None:
        """The system's turn, which declares the tools."""
        self._mark(GEMMA4.start_of_turn)
        self._say("system\n")
        if thinks:
            self._mark(THINK)
            self._say("\n")
        self._say(plain(words.strip()))
        for tool in tools:
            self._between(GEMMA4_TAGS.declaration, _declaration(tool))
        self._end_turn()

    def turns(self, messages: Sequence[Message], *, goes_on: bool) -> None:
        """All turns; the last one stays open if it goes on."""
        users = [index for index, message in enumerate(messages) if message.role == "user"]
        newest = users[-1] if users else -1  # thoughts before the user's last words are dropped
        spoken = [index for index, message in enumerate(messages) if message.role != "tool"]
        before = ""  # the role
        for place, index in enumerate(spoken):
            message = messages[index]
            after = messages[spoken[place + 1]].role if place + 1 < len(spoken) else ""
            if not message.role == before == "assistant":
                self._mark(GEMMA4.start_of_turn)
                self._say(f"{_NAMES[message.role]}\n")
            if message.thought and index > newest:
                self._between(THOUGHT, f"{_CHANNEL}{plain(message.thought)}\n")
            responses = messages[index + 1 : spoken[place + 1] if after else None]
            self._call(message, responses)
            content = message.content.strip()
            self._say(plain(content))
            if not (goes_on and not after):
                self._end(message, after, has_responses=bool(responses), has_content=bool(content))
            before = message.role

    def open_turn(self, *, opens_thought: bool, thinks: bool) -> None:
        """The model's next turn; behind a tool's response it goes on with the one it has."""
        if self._last == "":
            self._mark(GEMMA4.start_of_turn)
            self._say("model\n")
            if opens_thought and not thinks:
                self._between(THOUGHT, _CHANNEL)
        elif self._last == "response" and thinks:
            self._mark(THOUGHT.begin)
            self._say(_CHANNEL)

    def _call(self, message: Message, responses: Sequence[Message]) -> None:
        self._last = ""
        for call in message.calls:
            self._between(GEMMA4_TAGS.call, written_call(call))
            self._last = "call"
        for response in responses if message.calls else ():
            assert response.answers is not None
            name = plain(response.answers.name)
            self._between(
                GEMMA4_TAGS.response, f"response:{name}{{value:{quoted(response.content)}}}"
            )
            self._last = "response"

    def _end(self, message: Message, after: str, *, has_responses: bool, has_content: bool) -> None:
        """End the message's turn, unless more of it follows."""
        goes_on = message.role == after == "assistant" and (has_responses or not message.calls)
        if self._last == "call":
            self._mark(GEMMA4_TAGS.response.begin)
        elif not goes_on and (after or has_content or self._last != "response"):
            self._end_turn()

    def _end_turn(self) -> None:
        self._mark(GEMMA4.end_of_turn)
        self._say("\n")

    def _between(self, span: Span, text: str) -> None:
        self._mark(span.begin)
        self._say(text)
        self._mark(span.end)

    def _say(self, text: str) -> None:
        self._text += text

    def _mark(self, marker: str) -> None:
        """Write a marker; a vocabulary without it gets its text."""
        marker_id = self._tokenizer.control_id(marker)
        if marker_id is None:
            self._say(marker)
        else:
            self._flush()
            self._ids.append(marker_id)

    def _flush(self) -> None:
        """Write the text, in which quotes are tokens."""
        text, self._text = self._text, ""
        quote_id = self._tokenizer.tags.quote
        if quote_id is None:
            text = text.replace(QUOTE, GEMMA4_TAGS.quote)
        for index, part in enumerate(text.split(QUOTE)):
            if index > 0 and quote_id is not None:
                self._ids.append(quote_id)
            self._ids += self._tokenizer.encode_literal(part)


def _with_one_opening(messages: Sequence[Message]) -> list[Message]:
    """The messages, those of the system before all others as one."""
    opening = list(takewhile(lambda message: message.role == "system", messages))
    if len(opening) < 2:
        return list(messages)
    words = GAP.join(message.content.strip() for message in opening)
    return [Message("system", words), *messages[len(opening) :]]


def _declaration(tool: Tool) -> str:
    """What stands between the tags of a tool's declaration."""
    text = f"declaration:{plain(tool.name)}{{description:{quoted(tool.description)}"
    schema = tool.parameters
    if schema:
        parts = []
        if properties := schema.get("properties"):
            parts.append(f"properties:{{{_properties(properties)}}}")
        if required := schema.get("required"):
            parts.append(f"required:{_strings(required)}")
        parts.append(f"type:{quoted(_upper(schema.get('type')))}")
        text += f",parameters:{{{','.join(parts)}}}"
    return text + "}"


def _properties(properties: Any) -> str:
    """Each property with what its schema says."""
    if not isinstance(properties, Mapping):
        return ""
    return ",".join(
        f"{plain(name)}:{{{_schema(schema if isinstance(schema, Mapping) else {})}}}"
        for name, schema in sorted_items(properties)
    )


def _schema(schema: Mapping[str, Any]) -> str:
    """What the template says of a value. It knows no other words of JSON Schema."""
    parts, kind = [], _upper(schema.get("type"))
    if description := schema.get("description"):
        parts.append(f"description:{quoted(str(description))}")
    if kind == "STRING" and (choices := schema.get("enum")):
        parts.append(f"enum:{written(choices, quote_keys=True)}")
    items = schema.get("items")
    if kind == "ARRAY" and isinstance(items, Mapping) and items:
        parts.append(f"items:{{{_items(items)}}}")
    if schema.get("nullable"):
        parts.append("nullable:true")
    if kind == "OBJECT":
        own = schema.get("properties")
        if not isinstance(own, Mapping):
            own = {name: value for name, value in schema.items() if name not in _OF_SCHEMAS}
        parts.append(f"properties:{{{_properties(own)}}}")
        if required := schema.get("required"):
            parts.append(f"required:{_strings(required)}")
    return ",".join([*parts, f"type:{quoted(kind)}"])


def _items(items: Mapping[str, Any]) -> str:
    """What the template says of a list's items."""
    parts = []
    for name, value in sorted_items(items):
        match name:
            case _ if value is None:
                continue
            case "properties":
                parts.append(f"properties:{{{_properties(value)}}}")
            case "required":
                parts.append(f"required:{_strings(value)}")
            case "type":
                kinds = [_upper(kind) for kind in value] if isinstance(value, list) else None
                parts.append(f"type:{written(kinds or _upper(value))}")
            case _:
                parts.append(f"{plain(name)}:{written(value, quote_keys=True)}")
    return ",".join(parts)


def _strings(values: Any) -> str:
    values = values if isinstance(values, list) else [values]
    return f"[{','.join(quoted(str(value)) for value in values)}]"


def _upper(kind: Any) -> str:
    """The type's name as the template writes it, also where it is a list of names."""
    return "" if kind is None else str(kind).upper()
