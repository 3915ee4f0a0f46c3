"""How Gemma writes the values in declarations, calls and responses of tools: JSON with bare keys,
and strings between quotes that are control tokens.

Source: ai.google.dev/gemma/docs/core/prompt-formatting-gemma4
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from gemma_server.text.chat import ToolCall

QUOTE = "\ufdd2"  # no character; it stands for the token
_CALL = re.compile(r"\s*call:\s*([^\s{}:,]+)\s*(?={)")
_SPACE = re.compile(r"\s*")
_KEY = re.compile(rf"[^\s:,{{}}\[\]{QUOTE}]+")
_BARE = re.compile(rf"[^,{{}}\[\]{QUOTE}]+")
_JSON = json.JSONDecoder()


def plain(text: str) -> str:
    """The text without what would be taken for a quote."""
    return text.replace(QUOTE, "\ufffd")


def quoted(text: str) -> str:
    """The text as a string."""
    return f"{QUOTE}{plain(text)}{QUOTE}"


def sorted_items(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The items by their names, in the order that jinja2's `dictsort` gives them."""
    return sorted(values.items(), key=lambda item: item[0].lower())


def written(value: Any, *, quote_keys: bool = False) -> str:
    """A JSON value."""
    match value:
        case None:
            return "null"
        case str():
            return quoted(value)
        case bool():
            return "true" if value else "false"
        case Mapping():
            return _object(value, quote_keys=quote_keys)
        case list():
            return f"[{','.join(written(item, quote_keys=quote_keys) for item in value)}]"
        case _:
            return str(value)


def written_call(call: ToolCall) -> str:
    """What stands between the tags of a call."""
    return f"call:{plain(call.name)}{_object(call.arguments)}"


def read_call(text: str) -> ToolCall | None:
    """The call that stands between the tags; None if it is none.

    What models often write instead of a string is one: JSON's own, and a bare word.
    """
    try:
        return _Reader(text).call()
    except (ValueError, RecursionError):
        return None


def _object(values: Mapping[str, Any], *, quote_keys: bool = False) -> str:
    name = quoted if quote_keys else plain
    items: Iterable[str] = (
        f"{name(key)}:{written(value, quote_keys=quote_keys)}"
        for key, value in sorted_items(values)
    )
    return f"{{{','.join(items)}}}"


class _Reader:
    """Reads one call, from left to right. Raises ValueError where it is none."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def call(self) -> ToolCall:
        """All of the text."""
        name = self._match(_CALL)[1]
        arguments = self._object()
        self._space()
        if self._at != len(self._text):
            raise ValueError
        return ToolCall(name, checked(arguments))

    def _value(self) -> Any:
        match self._text[self._at : self._at + 1]:
            case "{":
                return self._object()
            case "[":
                return self._list()
            case "" | "," | "}" | "]":
                raise ValueError
        text = self._string()
        return _bare(self._match(_BARE)[0].strip()) if text is None else text

    def _object(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        self._take("{")
        while not self._ends("}", after_item=bool(values)):
            key = self._string()
            key = self._match(_KEY)[0] if key is None else key
            self._space()
            self._take(":")
            self._space()
            values[key] = self._value()
        return values

    def _list(self) -> list[Any]:
        values: list[Any] = []
        self._take("[")
        while not self._ends("]", after_item=bool(values)):
            values.append(self._value())
        return values

    def _ends(self, end: str, *, after_item: bool) -> bool:
        """Whether the end comes; a comma is taken if it does not."""
        self._space()
        if self._text.startswith(end, self._at):
            self._at += 1
            return True
        if after_item:
            self._take(",")
            self._space()
        return False

    def _string(self) -> str | None:
        """A string in either kind of quotes, if one comes."""
        begin = self._at + 1
        if self._text.startswith(QUOTE, self._at):
            end = self._text.index(QUOTE, begin)
            self._at = end + 1
            return self._text[begin:end]
        if self._text.startswith('"', self._at):
            text, self._at = _JSON.raw_decode(self._text, self._at)
            return str(text)
        return None

    def _take(self, text: str) -> None:
        if not self._text.startswith(text, self._at):
            raise ValueError
        self._at += len(text)

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str]:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise ValueError
        self._at = found.end()
        return found

    def _space(self) -> None:
        self._match(_SPACE)


def _bare(word: str) -> Any:
    """A number or a constant of JSON, or else the word itself."""
    try:
        return json.loads(word, parse_constant=_no_constant)
    except ValueError:
        return word


def checked(value: Any) -> Any:
    """The value, if it can be sent as JSON.

    Raises:
        ValueError: it has a lone surrogate, or a number beyond all.
    """
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)  # JSON has no NaN
