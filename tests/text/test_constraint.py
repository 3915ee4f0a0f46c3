"""Grammars, token by token: whatever may follow is drawn, and what comes out fits."""

import contextlib
import json
import random
import re
import time
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_server.engine.fake import fake_tokenizer
from gemma_server.errors import ConstraintFailed, GrammarRefused
from gemma_server.text import grammar
from gemma_server.text.chat import Tool
from gemma_server.text.constraint import Grammars, InTurn, Matcher
from gemma_server.text.notation import read_call
from gemma_server.text.tokenizer import Tokenizer
from testing.chats import MARKERS, gemma4_tokenizer
from testing.schemas import random_schemas

TOKENIZER = fake_tokenizer()
GRAMMARS = Grammars(TOKENIZER)
ENDINGS = frozenset(TOKENIZER.encode_literal('"}],'))
LONGEST = 400


def allowed(mask: bytes) -> list[int]:
    return [index for index in range(8 * len(mask)) if mask[index // 8] >> index % 8 & 1]


def draw(matcher: Matcher, rng: random.Random, tokenizer: Tokenizer = TOKENIZER) -> str | None:
    """A text of the grammar, drawn byte by byte; None if it does not end."""
    drawn: list[int] = []
    while not matcher.is_complete and len(drawn) < LONGEST:
        may = allowed(matcher.mask)
        ends = [token for token in may if token in tokenizer.stop_ids]
        closing = [token for token in may if token in ENDINGS]
        if ends and rng.random() < 0.5:
            return tokenizer.decode(drawn)
        choices = closing if closing and rng.random() < 0.3 else [t for t in may if t not in ends]
        token = rng.choice(choices or may)
        if token in ends:
            return tokenizer.decode(drawn)
        matcher.take(token)
        drawn.append(token)
    return tokenizer.decode(drawn) if matcher.is_complete else None


def test_what_ends_fits_its_schema() -> None:
    """Four hundred schemas; what llguidance cannot keep to is refused, and that is rare."""
    rng, refused, ended = random.Random(3), [], 0
    for schema in random_schemas(400):
        try:
            matcher = GRAMMARS.start(grammar.of_schema(schema))
        except GrammarRefused as error:
            refused.append(error)
            continue
        for _ in range(2):
            text = draw(matcher.copy(), rng)
            if text is not None:
                ended += 1
                value = json.loads(text)
                assert jsonschema_rs.is_valid(schema, value, validate_formats=True), (schema, text)
    assert len(refused) < 20, refused
    assert ended > 500


def test_white_space_ends() -> None:
    matcher = GRAMMARS.start(grammar.of_schema({"type": "array", "items": {"type": "null"}}))
    for token in TOKENIZER.encode_literal("[" + " " * 8):
        matcher.take(token)
    assert not set(allowed(matcher.mask)) & set(TOKENIZER.encode_literal(" \n\t"))


def test_keys_come_in_the_schema_s_order() -> None:
    properties = {name: {"type": "integer"} for name in ("z", "a", "m")}
    schema = {"type": "object", "properties": properties, "required": ["z", "a", "m"]}
    matcher = GRAMMARS.start(grammar.of_schema(schema))
    text = draw(matcher, random.Random(3))
    assert text is None or list(json.loads(text))[:3] == ["z", "a", "m"]
    fresh = GRAMMARS.start(grammar.of_schema(schema))
    for token in TOKENIZER.encode_literal('{"'):
        fresh.take(token)
    assert allowed(fresh.mask) == TOKENIZER.encode_literal("z")


@pytest.mark.parametrize(
    ("written", "pattern"),
    [
        (grammar.of_regex(r"\d{1,3}(\.\d)?"), r"\d{1,3}(\.\d)?"),
        (grammar.of_choice(["ja", "nein", "é\n"]), "ja|nein|é\n"),
        (grammar.of_grammar('root ::= "a" b*\nb ::= [x-z] "!"'), "a([x-z]!)*"),
        (grammar.of_grammar("start: A B?\nA: /[ab]{2}/\nB: \"<[5]>\""), r"[ab]{2}(<\[5\]>)?"),
    ],
)  # fmt: skip
def test_other_grammars(written: str, pattern: str) -> None:
    rng = random.Random(2)
    for _ in range(20):
        text = draw(GRAMMARS.start(written), rng)
        assert text is None or re.fullmatch(pattern, text)


@pytest.mark.parametrize(
    "text",
    [
        'start: <[2]> "a"',
        "start: <bos>",
        'start: "a" <[1-5]>',
        "start: /a\n/ <[4]> /b/",
        'start: "a" <[1]> "b"',
        '%llguidance {"allow_invalid_utf8": true}\nstart: /(?s-u:.)*/',
        'start: %json {"type": "string"}',
    ],
)
def test_no_grammar_of_a_stranger_makes_control_tokens(text: str) -> None:
    controls = {index for index in range(TOKENIZER.vocab_size) if not TOKENIZER.piece_bytes(index)}
    rng = random.Random(7)
    with contextlib.suppress(GrammarRefused, ConstraintFailed):
        matcher = GRAMMARS.start(grammar.of_grammar(text))
        for _ in range(20):
            may = allowed(matcher.mask)
            assert not set(may) & (controls - TOKENIZER.stop_ids)
            assert not set(may) & TOKENIZER.stop_ids
            matcher.take(rng.choice(may))


HOSTILE: list[tuple[Callable[[Any], str], Any]] = [
    (grammar.of_regex, "a{1000}{1000}{10}"),
    (grammar.of_regex, "(((((a*)*)*)*)*)*b"),
    (grammar.of_regex, "(" + "|".join(f"{'.' * n}x" for n in range(1, 200)) + ")*"),
    (grammar.of_regex, ".{1,5000}" * 8),
    (grammar.of_schema, {"type": "string", "pattern": "(.{1,1000}){1,1000}x"}),
    (grammar.of_schema, {"type": "array", "items": {}, "minItems": 100_000}),
    (grammar.of_schema, {"type": "object", "properties": {f"k{n}": {} for n in range(800)}}),
    (grammar.of_schema, {"anyOf": [{"enum": [f"{n}" * 9, n]} for n in range(900)]}),
    (grammar.of_grammar, 'start: start start start "a" | "b" | start'),
    (grammar.of_grammar, "start: " + "(" * 50 + '"a"' + ")*" * 50),
]


@pytest.mark.parametrize(("write", "given"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_grammar_costs_little(write: Callable[[Any], str], given: Any) -> None:
    """Each is refused, fails or goes on, soon; the bound is a multiple of what was seen."""
    began, rng = time.process_time(), random.Random(4)
    with contextlib.suppress(GrammarRefused, ConstraintFailed):
        draw(GRAMMARS.start(write(given)), rng)
    assert time.process_time() - began < 10


@settings(max_examples=200)
@given(st.recursive(
    st.sampled_from([None, True, 1, -2.5, "a", "string", "#", "#/$defs/a", "^a", "date", [], {}]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["type", "properties", "items", "$ref", "$defs", "anyOf", "oneOf", "allOf",
                         "enum", "const", "pattern", "format", "minimum", "maxLength", "a", "not",
                         "required", "additionalProperties", "prefixItems", "x-guidance"]),
        inner, max_size=4),
    max_leaves=12,
))  # fmt: skip
def test_any_json_is_a_schema_or_refused(schema: Any) -> None:
    with contextlib.suppress(GrammarRefused, ConstraintFailed):
        GRAMMARS.start(grammar.of_schema(schema))


@given(st.text(max_size=40), st.sampled_from([grammar.of_regex, grammar.of_grammar]))
def test_any_text_is_a_grammar_or_refused(text: str, write: Any) -> None:
    with contextlib.suppress(GrammarRefused, ConstraintFailed):
        GRAMMARS.start(write(text))


TOOL = Tool(
    "look",
    "",
    {"type": "object", "properties": {"at": {"type": "string", "maxLength": 5}}, "required": ["at"],
     "additionalProperties": False},
)  # fmt: skip
OTHER = Tool("a.b-c", "", {"type": "object", "properties": {}, "additionalProperties": False})


def in_turn(**how: Any) -> InTurn:
    tokenizer = gemma4_tokenizer()
    grammars = Grammars(tokenizer)
    written = grammar.of_call([TOOL, OTHER], MARKERS["<tool_call|>"])
    end = MARKERS["<tool_call|>"]
    return InTurn(tokenizer, how.pop("content", None), grammars.start(written, end), **how)


def test_a_call_fits_its_tool_and_is_read_back() -> None:
    rng, names = random.Random(5), set()
    for _ in range(30):
        turn, drawn = in_turn(must_call=True, only_one_call=True), list[int]()
        while not turn.is_complete and len(drawn) < LONGEST:
            assert turn.mask is not None
            token = rng.choice(allowed(turn.mask))
            turn.take(token)
            drawn.append(token)
        if turn.is_complete:
            begin, *inner, end = drawn
            assert (begin, end) == (MARKERS["<|tool_call>"], MARKERS["<tool_call|>"])
            call = read_call(gemma4_tokenizer().decode(inner))
            assert call is not None
            names.add(call.name)
            tool = TOOL if call.name == "look" else OTHER
            assert jsonschema_rs.is_valid(dict(tool.parameters), call.arguments)
    assert names == {"look", "a.b-c"}


def test_a_thought_is_free_but_has_to_end() -> None:
    tokenizer = gemma4_tokenizer()
    content = Grammars(tokenizer).start(grammar.of_choice(["yes"]))
    turn = InTurn(tokenizer, content, may_think=True)
    assert turn.mask is not None
    assert set(allowed(turn.mask)) == {MARKERS["<|channel>"], *tokenizer.encode_literal("y")}
    turn.take(MARKERS["<|channel>"])
    assert not set(allowed(turn.mask)) & tokenizer.stop_ids
    for token in (*tokenizer.encode_literal("no!"), MARKERS["<channel|>"]):
        turn.take(token)
    assert set(allowed(turn.mask)) == set(tokenizer.encode_literal("y"))
    for token in tokenizer.encode_literal("yes"):
        assert not turn.is_complete
        turn.take(token)
    assert turn.is_complete


@pytest.mark.parametrize("word", [{"const": "a\0b"}, {"enum": [1, ["a", {"\0": 1}]]}], ids=str)
def test_a_nul_character_is_refused_where_it_would_be_left_out(word: dict[str, Any]) -> None:
    with pytest.raises(GrammarRefused) as error:
        grammar.of_schema({"properties": {"x": word}})
    assert error.value.where == f"#/properties/x/{next(iter(word))}"
    assert grammar.of_choice(["a\0b"])  # there it is kept
