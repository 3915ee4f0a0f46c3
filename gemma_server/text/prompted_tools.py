"""Tools for models that have no tokens for them: told of in words, and called in JSON.

Source: ai.google.dev/gemma/docs/capabilities/function-calling, for the words and for the form of a
call.
"""

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

from gemma_server.text.chat import Message, Tool, ToolCall
from gemma_server.text.chat_template import GAP, ChatTemplate
from gemma_server.text.detokenizer import TextStream
from gemma_server.text.notation import checked
from gemma_server.text.turn_stream import Said

_TOLD = (
    "You have access to functions. If you decide to invoke any of the functions, you MUST put it "
    'in the format of {"name": function name, "parameters": dictionary of argument name and its '
    "value}\nYou SHOULD NOT include any other text in the response if you call a function.\n"
)
_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.S)
_OPENINGS = ("{", "[", "```")


def with_tools(template: ChatTemplate) -> ChatTemplate:
    """The template, which can write tools in some way."""
    return template if template.takes_tools else PromptedTools(template)


class PromptedTools:
    """A template that writes tools, calls and responses as words into one that knows none.

    The system is told of the tools. A call is the JSON that the model is asked for, and the
    response to it a message of the user's.
    """

    takes_tools = True

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self.takes_thinking = template.takes_thinking

    def encode(
        self,
        messages: Sequence[Message],
        *,
        goes_on: bool = False,
        tools: Sequence[Tool] = (),
        thinks: bool = False,
    ) -> list[int]:
        """See `ChatTemplate`."""
        words = list(map(_in_words, messages))
        if tools:
            told = _TOLD + json.dumps([tool.told() for tool in tools], ensure_ascii=False)
            first = words[0] if words and words[0].role == "system" else None
            if first is not None:
                words[0] = Message("system", f"{first.content}{GAP}{told}")
            else:
                words.insert(0, Message("system", told))
        return self._template.encode(words, goes_on=goes_on, thinks=thinks)

    def ids_after_answer(self) -> list[int]:
        """See `ChatTemplate`."""
        return self._template.ids_after_answer()


def _in_words(message: Message) -> Message:
    if message.answers is not None:
        name = message.answers.name
        return Message(
            "user", f'<tool_response name="{name}">\n{message.content}\n</tool_response>'
        )
    if message.calls:
        calls = [{"name": call.name, "parameters": call.arguments} for call in message.calls]
        written = json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)
        return Message(message.role, f"{message.content}\n{written}".strip(), message.thought)
    return message


class PromptedStream:
    """Reads an answer id by id that may be a call of one of the tools `names`, and then is nothing
    else. What begins like JSON is held back until its end shows what it is."""

    def __init__(self, content: TextStream, names: Collection[str], *, only_one: bool) -> None:
        self._content, self._names, self._only_one = content, frozenset(names), only_one
        self._held: str | None = ""  # None: it is text
        self.in_content = True

    @property
    def stopped(self) -> bool:
        """A stop string was found; push no more."""
        return self._content.stopped

    @property
    def decoded(self) -> int:
        """Characters so far, those held back included."""
        return self._content.decoded

    def push(self, token_id: int) -> Said:
        """Take one id; return what is now certain."""
        return self._take(self._content.push(token_id))

    def close(self) -> Said:
        """What is still held back, once no id will follow."""
        said = self._take(self._content.close())
        held, self._held = self._held, None
        if not held:
            return said
        calls = self._calls(held)
        return Said(calls=calls) if calls else Said(text=held)

    def _take(self, text: str) -> Said:
        if self._held is None:
            return Said(text=text)
        self._held += text
        begin = self._held.lstrip()
        if any(begin.startswith(opening[: len(begin)]) for opening in _OPENINGS):
            return Said()
        text, self._held = self._held, None
        return Said(text=text)

    def _calls(self, text: str) -> tuple[ToolCall, ...]:
        """The calls that the text is; none if it is something else, or calls what there is not."""
        fenced = _FENCED.fullmatch(text)
        try:
            found: Any = checked(json.loads(fenced[1] if fenced else text))
        except (ValueError, RecursionError):
            return ()
        documents = found if isinstance(found, list) else [found]
        calls = tuple(call for each in documents if (call := self._call(each)) is not None)
        if len(calls) != len(documents):
            return ()
        return calls[:1] if self._only_one else calls

    def _call(self, document: Any) -> ToolCall | None:
        if not isinstance(document, dict) or document.keys() - {"name", "parameters", "arguments"}:
            return None
        name, arguments = document.get("name"), document.get("parameters", {})
        arguments = document.get("arguments", arguments)
        if not isinstance(name, str) or name not in self._names or not isinstance(arguments, dict):
            return None
        return ToolCall(name, arguments)
