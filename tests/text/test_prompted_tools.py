"""Tools of models without tokens for them: told in words, called in JSON."""

import json
import random

import jsonschema_rs
import pytest

from gemma_server.engine.fake import fake_tokenizer
from gemma_server.text import grammar
from gemma_server.text.chat import Message, Tool, ToolCall
from gemma_server.text.chat_template import GemmaTemplate
from gemma_server.text.constraint import Grammars
from gemma_server.text.detokenizer import TextStream
from gemma_server.text.prompted_tools import PromptedStream, PromptedTools, with_tools
from gemma_server.text.stop_strings import StopStrings
from gemma_server.text.turn_stream import Said
from testing.chats import gemma4_tokenizer
from tests.text.test_constraint import draw

TOKENIZER = fake_tokenizer()
SCHEMA = {"type": "object", "properties": {"at": {"type": "string", "maxLength": 4}},
          "required": ["at"], "additionalProperties": False}  # fmt: skip
LOOK = Tool("look", "Looks.", SCHEMA)
CALL = ToolCall("look", {"at": "é"})


def read(text: str, *stops: str, only_one: bool = False) -> Said:
    """All that is said, in parts as they come."""
    content = TextStream(TOKENIZER.piece_bytes, StopStrings(stops))
    stream = PromptedStream(content, {"look", "go"}, only_one=only_one)
    parts = []
    for token in TOKENIZER.encode_literal(text):
        parts.append(stream.push(token))
        if stream.stopped:
            break
    parts.append(stream.close())
    return Said(
        "".join(part.text for part in parts),
        calls=tuple(call for part in parts for call in part.calls),
    )


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "look", "parameters": {"at": "é"}}',
        '\n {"name":"look","arguments":{"at":"é"}}\n',
        '[{"name": "look", "parameters": {"at": "é"}}]',
        '```json\n{"name": "look", "parameters": {"at": "é"}}\n```\n',
        '```\n{"name": "look", "parameters": {"at": "é"}}\n```',
    ],
)
def test_a_call_is_read(text: str) -> None:
    assert read(text) == Said(calls=(CALL,))


@pytest.mark.parametrize(
    "text",
    [
        "just text",
        " text {",
        '{"name": "other", "parameters": {}}',
        '{"name": "look", "parameters": {}, "more": 1}',
        '{"name": "look", "parameters": [1]}',
        '{"name": ["look"]}',
        '{"a": 1}',
        "[1, 2]",
        "[]",
        '{"name": "look", "para',
        "```python\nprint()\n```",
        '[{"name": "look"}, 5]',
        '{"name": "look"} and more',
        "",
    ],
)
def test_what_is_no_call_is_text_as_it_was(text: str) -> None:
    assert read(text) == Said(text)


def test_several_calls_and_the_first_alone() -> None:
    text = '[{"name": "look", "parameters": {"at": "é"}}, {"name": "go"}]'
    assert read(text).calls == (CALL, ToolCall("go", {}))
    assert read(text, only_one=True).calls == (CALL,)
    assert read('{"name": "lo', 'e": "l') == Said('{"nam')


def test_text_does_not_wait() -> None:
    stream = PromptedStream(TextStream(TOKENIZER.piece_bytes), {"look"}, only_one=False)
    shown = [stream.push(token).text for token in TOKENIZER.encode_literal(" {a} b")]
    assert "".join(shown) == ""
    stream = PromptedStream(TextStream(TOKENIZER.piece_bytes), {"look"}, only_one=False)
    shown = [stream.push(token).text for token in TOKENIZER.encode_literal(" a{b")]
    assert shown == ["", " a", "{", "b"]


def test_the_model_is_told_in_words() -> None:
    template = PromptedTools(GemmaTemplate(TOKENIZER))
    messages = [
        Message("system", "Be brief."),
        Message("user", "What is there?"),
        Message("assistant", "I look.", calls=(CALL,)),
        Message("tool", "a wall", answers=CALL),
    ]
    text = TOKENIZER.decode(template.encode(messages, tools=[LOOK]))
    assert text.startswith("user\nBe brief.\n\nYou have access to functions.")
    assert json.dumps([LOOK.told()]) in text
    assert 'model\nI look.\n{"name": "look", "parameters": {"at": "é"}}' in text
    assert text.endswith('user\n<tool_response name="look">\na wall\n</tool_response>\nmodel\n')
    plain = [Message("user", "Hi")]
    assert template.encode(plain) == GemmaTemplate(TOKENIZER).encode(plain)
    assert template.ids_after_answer() == GemmaTemplate(TOKENIZER).ids_after_answer()


def test_a_template_with_tools_stays() -> None:
    from gemma_server.text.gemma4_template import Gemma4Template

    own = Gemma4Template(gemma4_tokenizer(), opens_thought=False)
    assert with_tools(own) is own


def test_a_forced_call_fits_its_tool() -> None:
    rng, grammars = random.Random(6), Grammars(TOKENIZER)
    kinds = set()
    for or_text in (False, True):
        written = grammar.of_json_call([LOOK, Tool("go", "", {"type": "object"})], or_text=or_text)
        for _ in range(20):
            text = draw(grammars.start(written), rng)
            if text is None:
                continue
            said = read(text)
            assert said.calls or or_text
            kinds.add(bool(said.calls))
            for call in said.calls:
                if call.name == "look":
                    assert jsonschema_rs.is_valid(SCHEMA, call.arguments)
    assert kinds == {True, False}
