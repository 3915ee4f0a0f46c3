"""A checkpoint's own chat template, rendered as Hugging Face's libraries render it.

Source: huggingface/transformers, `utils/chat_template_utils.py`. The names and filters that
templates use are the same; the sandbox keeps them from everything else.
"""

import contextlib
import json
import re
import traceback
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gemma_server.errors import ChatRefused, ModelLoadError
from gemma_server.text.chat_template import ChatTemplate, Message, Role
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
        self._tokenizer = tokenizer
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

    def encode(self, messages: Sequence[Message], *, goes_on: bool = False) -> list[int]:
        """`<bos>`, the messages, and the opening of the model's next turn.

        With `goes_on` the last message is the model's, and its turn stays open instead.

        Raises:
            ChatRefused: the template cannot render these messages.
            InvalidText: a message is not valid Unicode.
        """
        safe = [Message(message.role, self._broken(message.content)) for message in messages]
        if not goes_on:
            return self._ids(self._render(safe, open_turn=True))
        text, _ = self._around_the_end(safe)
        return self._ids(text)

    def ids_after_answer(self) -> list[int]:
        """What stands between an answer and the next turn."""
        said = [Message("user", "question"), Message("assistant", "answer")]
        _, after = self._around_the_end(said)
        return self._ids(after)[1:]

    def _around_the_end(self, messages: Sequence[Message]) -> tuple[str, str]:
        """The text up to the end of the last message's content, and what follows it."""
        *before, last = messages
        marked = Message(last.role, last.content.rstrip() + _END)
        text, found, after = self._render([*before, marked], open_turn=False).partition(_END)
        if not found:
            raise ChatRefused("it leaves out the message that goes on", None)
        return text, after

    def _sample(self) -> str:
        """Some text that the template writes; none if it takes none of these chats."""
        roles: tuple[tuple[Role, ...], ...] = (("user", "assistant", "user"), ("system", "user"))
        text = ""
        for chat in roles:
            with contextlib.suppress(ChatRefused):
                text += self._render([Message(role, "") for role in chat], open_turn=True)
        return text

    def _render(self, messages: Sequence[Message], *, open_turn: bool) -> str:
        parts, size = [], 0
        try:
            for part in self._template.generate(
                messages=[vars(message) for message in messages],
                add_generation_prompt=open_turn,
                bos_token=self._bos,
                eos_token=self._eos,
                tools=None,
                documents=None,
            ):
                parts.append(part)
                size += len(part)
                if size > _MOST_RENDERED:
                    raise TemplateError(f"it makes more than {_MOST_RENDERED:,} characters")
        except Exception as error:  # templates are programs: they can fail in every way
            raise ChatRefused(_reason(error), _line(error)) from None
        return "".join(parts)

    def _broken(self, content: str) -> str:
        """The content, its markers broken after their first character."""
        content = content.replace(_BREAK, "\ufffd").replace(_END, "\ufffd")
        return self._split.sub(lambda found: found[0][0] + _BREAK + found[0][1:], content)

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


# What Gemma's own templates of all generations write the same way as ours.
_ALIKE: tuple[tuple[tuple[Role, str], ...], ...] = (
    (("user", " one\n"),),
    (("user", "one"), ("assistant", " two "), ("user", "three")),
)
_SYSTEM: tuple[tuple[Role, str], ...] = (("system", " be brief "), ("user", "one"))


def is_gemma_s(template: JinjaTemplate, gemma: ChatTemplate) -> bool:
    """Whether the template writes chats as Gemma's does, which takes more of them and is faster.

    The templates of Gemma 1 and 2 refuse the system's message, as ours does not.
    """

    def is_alike(chat: tuple[tuple[Role, str], ...]) -> bool:
        messages = [Message(role, content) for role, content in chat]
        return template.encode(messages) == gemma.encode(messages)

    try:
        if not all(map(is_alike, _ALIKE)):
            return False
    except ChatRefused:
        return False
    try:
        return is_alike(_SYSTEM)
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
