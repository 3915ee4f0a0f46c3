"""Gemma 4's chat template against the official ones, rendered once by scripts/goldens."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_server.errors import InvalidText
from gemma_server.text.chat import Message, Tool, ToolCall
from gemma_server.text.gemma4_template import Gemma4Template
from testing.chats import MARKERS, gemma4_tokenizer, messages_of, shown, tools_of
from testing.quality import GOLDENS

CHATS: list[dict[str, Any]] = json.loads((GOLDENS / "gemma4_chats.json").read_text())
LARGE = Gemma4Template(gemma4_tokenizer(), opens_thought=True)
SMALL = Gemma4Template(gemma4_tokenizer(), opens_thought=False)


def test_chats_are_written_as_the_official_templates_do() -> None:
    assert len(CHATS) > 60
    for chat in CHATS:
        template = LARGE if chat["size"] == "large" else SMALL
        ids = template.encode(
            messages_of(chat["messages"]), tools=tools_of(chat["tools"]), thinks=chat["thinks"]
        )
        assert shown(ids) == chat["text"]


TEXTS = st.sampled_from(["", "a", *MARKERS, "<bos>", "\ufdd2", "\ufdd0", " <turn|> \ufdd2b"])


@given(*[TEXTS] * 7)
def test_only_the_template_writes_markers(
    content: str, name: str, key: str, value: str, about: str, response: str, thought: str
) -> None:
    def ids(content: str, name: str, key: str, value: str, about: str, response: str) -> list[int]:
        call = ToolCall(name, {key: [value, {key: value}]}, "1")
        schema = {"type": "object", "properties": {key: {"type": value, "description": about}}}
        messages = [
            Message("user", content),
            Message("assistant", content, thought, (call,)),
            Message("tool", response, answers=call),
        ]
        return LARGE.encode(messages, tools=[Tool(name, about, schema)], thinks=True)

    written, plain = ids(content, name, key, value, about, response), ids(*["x"] * 6)
    controls = {*MARKERS.values(), gemma4_tokenizer().bos_id}

    def of_controls(ids: list[int]) -> list[int]:
        return [index for index in ids if index in controls]

    if about and content.strip() and thought:  # what is empty is left out
        assert of_controls(written) == of_controls(plain)
    assert written.count(gemma4_tokenizer().bos_id) == 1


def test_a_turn_may_stay_open() -> None:
    said = [Message("user", "a"), Message("assistant", " b ")]
    assert shown(LARGE.encode(said, goes_on=True)).endswith("<|turn>model\nb")
    assert shown(LARGE.ids_after_answer()) == "<turn|>\n"


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(InvalidText, match="surrogate"):
        LARGE.encode([Message("user", "a\udc00")])
