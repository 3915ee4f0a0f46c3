"""A checkpoint's own chat template, rendered as Hugging Face's libraries render it.

Source: huggingface/transformers, `utils/chat_template_utils.py`. The names and filters that
templates use are the same; the sandbox keeps them from everything else.
"""

import contextlib
import json
import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gemma_server.errors import ChatRefused, ModelLoadError
from gemma_server.text.chat import Message, Role, Tool, ToolCall
from gemma_server.text.chat_template import ChatTemplate
from gemma_server.text.tokenizer import Tokenizer

_MOST_SOURCE, _MOST_RENDERED = 1 << 20, 1 << 24  # characters
_BREAK = "\ufdd0"  # no character; it keeps a marker in a message from being one
_END = "\ufdd1"  # nor is this; it marks the end of a message that goes on
_FILE = "<template>"  # jinja2's name for what came as a string


class JinjaTemplate:
    """Renders messages and encodes the text, in which the template's markers are control tokens.

    Only the template makes these: a marker in a message stays text.

    Raises:
        ModelLoadError: the source is no template; the text names its line.
    """

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        if len(source) > _MOST_SOURCE:
            raise ModelLoadError(f"its chat template has {len(source):,} characters")
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise ModelLoadError(
                f"its chat template, line {error.lineno}: {error.message}"
            ) from None
        except Exception as error:  # Python refuses some that jinja2 takes: loops nested too deeply
            raise ModelLoadError(f"its chat template: {_reason(error)}") from None
        self._tokenizer, self._source = tokenizer, source
        self._bos, self._eos = map(tokenizer.piece, (tokenizer.bos_id, tokenizer.eos_id))
        self._markers: dict[str, int] = {}
        written = source + self._sample()  # it may put its markers together
        self._markers = {
            piece: token_id
            for piece, token_id in tokenizer.special_pieces().items()
            if piece in (self._bos, self._eos) or (len(piece.strip()) > 1 and piece in written)
        }
        longest_first = sorted(self._markers, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @property
    def takes_tools(self) -> bool:
        """Whether it writes tools in a way that answers are read in."""
        return self._tokenizer.family.tags is not None and "tools" in self._source

    @property
    def takes_thinking(self) -> bool:
        """Whether it asks the model to think, in a way that answers are read in."""
        tags = self._tokenizer.family.tags
        return tags is not None and tags.think is not None and "enable_thinking" in self._source

    def encode(
        self,
        messages: Sequence[Message],
        *,
        goes_on: bool = False,
        tools: Sequence[Tool] = (),
        thinks: bool = False,
    ) -> list[int]:
        """`<bos>`, the messages, and the opening of the model's next turn.

        With `goes_on` the last message is the model's, and its turn stays open instead.

        Raises:
            ChatRefused: the template cannot render these messages.
            InvalidText: a message is not valid Unicode.
        """
        chat = {
            "messages": self._broken(list(map(_message, messages))),
            "tools": self._broken(list(map(_tool, tools))) or None,
            "enable_thinking": thinks,
        }
        if not goes_on:
            return self._ids(self._render(chat, open_turn=True))
        text, _ = self._around_the_end(chat)
        return self._ids(text)

    def ids_after_answer(self) -> list[int]:
        """What stands between an answer and the next turn."""
        said = [Message("user", "question"), Message("assistant", "answer")]
        _, after = self._around_the_end({"messages": list(map(_message, said))})
        return self._ids(after)[1:]

    def _around_the_end(self, chat: Mapping[str, Any]) -> tuple[str, str]:
        """The text up to the end of the last message's content, and what follows it."""
        *before, last = chat["messages"]
        marked = {**last, "content": last["content"].rstrip() + _END}
        chat = {**chat, "messages": [*before, marked]}
        text, found, after = self._render(chat, open_turn=False).partition(_END)
        if not found:
            raise ChatRefused("it leaves out the message that goes on", None)
        return text, after

    def _sample(self) -> str:
        """Some text that the template writes; none if it takes none of these chats."""
        roles: tuple[tuple[Role, ...], ...] = (("user", "assistant", "user"), ("system", "user"))
        text = ""
        for chat in roles:
            with contextlib.suppress(ChatRefused):
                messages = [_message(Message(role, "")) for role in chat]
                text += self._render({"messages": messages}, open_turn=True)
        return text

    def _render(self, chat: Mapping[str, Any], *, open_turn: bool) -> str:
        parts, size = [], 0
        try:
            for part in self._template.generate(
                {"tools": None, "documents": None, **chat},
                add_generation_prompt=open_turn,
                bos_token=self._bos,
                eos_token=self._eos,
            ):
                parts.append(part)
                size += len(part)
                if size > _MOST_RENDERED:
                    raise TemplateError(f"it makes more than {_MOST_RENDERED:,} characters")
        except Exception as error:  # templates are programs: they can fail in every way
            raise ChatRefused(_reason(error), _line(error)) from None
        return "".join(parts)

    def _broken(self, value: Any) -> Any:
        """The JSON value, the markers in its texts broken after their first character."""
        match value:
            case str():
                text = value.replace(_BREAK, "\ufffd").replace(_END, "\ufffd")
                return self._split.sub(lambda found: found[0][0] + _BREAK + found[0][1:], text)
            case list():
                return [self._broken(item) for item in value]
            case Mapping():
                return {self._broken(key): self._broken(item) for key, item in value.items()}
        return value

    def _ids(self, text: str) -> list[int]:
        """`<bos>`, once, and the ids of what was rendered."""
        ids = [self._tokenizer.bos_id]
        for part in self._split.split(text):
            if part in self._markers:
                ids += [self._markers[part]] if part != self._bos else []
            else:
                for literal in filter(None, part.split(_BREAK)):
                    ids += self._tokenizer.encode_literal(literal)
        return ids


def _message(message: Message) -> dict[str, Any]:
    """A message as templates take it: OpenAI's form, with the arguments of calls as objects."""
    document: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thought:
        document["reasoning_content"] = message.thought
    if message.calls:
        document["tool_calls"] = list(map(_call, message.calls))
    if message.answers is not None:
        document |= {"tool_call_id": message.answers.id, "name": message.answers.name}
    return document


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _tool(tool: Tool) -> dict[str, Any]:
    return {"type": "function", "function": tool.told()}


@dataclass(frozen=True)
class _Example:
    """A chat that Gemma's own templates write in one way."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    thinks: bool = False

    def is_alike(self, template: ChatTemplate, other: ChatTemplate) -> bool:
        """Whether both write it in the same way."""
        wanted: Any = {"tools": self.tools, "thinks": self.thinks}
        return template.encode(self.messages, **wanted) == other.encode(self.messages, **wanted)


_USER = Message("user", " one\n")
_SYSTEM = Message("system", " be brief ")
_ALIKE = (
    _Example((_USER,)),
    _Example((_USER, Message("assistant", " two "), Message("user", "three"))),
)
_OPENED = _Example((_SYSTEM, _USER))
_LOOK = ToolCall("look", {"b": [1, None], "a": {"c": "d", "B": True}}, id="1")
_FOUND = Message("tool", "5", answers=_LOOK)
_PARAMETERS = {
    "type": "object",
    "properties": {
        "b": {"type": "array", "items": {"type": "number"}, "description": "e"},
        "a": {"type": "object", "properties": {"c": {"type": "string", "enum": ["d"]}}},
    },
    "required": ["a"],
}
_ALIKE_WITH_TOOLS = (
    _Example((_SYSTEM, _USER), (Tool("look", "Looks.", _PARAMETERS),), thinks=True),
    _Example((_USER, Message("assistant", "", "Hm.", (_LOOK,)), _FOUND)),
    _Example((_USER, Message("assistant", "", "", (_LOOK,))), thinks=True),
)


def is_gemma_s(template: JinjaTemplate, gemma: ChatTemplate) -> bool:
    """Whether the template writes chats as Gemma's does, which takes more of them and is faster.

    The templates of Gemma 1 and 2 refuse the system's message, as ours does not.
    """
    if (template.takes_tools, template.takes_thinking) != (gemma.takes_tools, gemma.takes_thinking):
        return False
    examples = _ALIKE + (_ALIKE_WITH_TOOLS if gemma.takes_tools else ())
    try:
        if not all(example.is_alike(template, gemma) for example in examples):
            return False
    except ChatRefused:
        return False
    try:
        return _OPENED.is_alike(template, gemma)
    except ChatRefused:
        return True


def _reason(error: Exception) -> str:
    return f"{type(error).__name__} {error}"[:300] if str(error) else type(error).__name__


def _line(error: Exception) -> int | None:
    """The template's line, which jinja2 writes into the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if frame.filename == _FILE), None)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _Generation],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class _Generation(Extension):
    """`{% generation %}` around what the model says: it marks what to train on."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes within the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """As it is, unlike jinja2's own, which escapes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise(message: object) -> NoReturn:
    raise TemplateError(str(message))
