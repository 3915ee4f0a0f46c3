"""What a turn's ids say: content, thoughts and calls."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_server.text.chat import ToolCall
from gemma_server.text.detokenizer import TextStream
from gemma_server.text.notation import QUOTE, read_call, written_call
from gemma_server.text.stop_strings import StopStrings
from gemma_server.text.turn_stream import Reading, Said, TurnStream
from testing.chats import MARKERS, gemma4_tokenizer

CALLS = Reading(calls=True)
TOKENIZER = gemma4_tokenizer()
NAMES = st.text("abz_-1", min_size=1, max_size=4)
JSON = st.recursive(
    st.sampled_from([None, True, False, 0, -3, 2.5, 1e300, "", "a", "null", "1", ' "{[:,', "é\n"]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(NAMES, values, max_size=3),
    max_leaves=6,
)


def ids_of(text: str) -> list[int]:
    """The ids of a turn in which the markers are spelled."""
    return TOKENIZER.encode(text)[1:]


def stream(
    reading: Reading | None = CALLS,
    *stops: str,
    prompt: str = "",
    min_tokens: int = 0,
) -> TurnStream:
    content = TextStream(TOKENIZER.piece_bytes, StopStrings(stops), min_tokens)
    return TurnStream(content, TOKENIZER, reading, TOKENIZER.encode(prompt))


def read(turn: TurnStream, text: str) -> Said:
    """All that is said, in the three ways."""
    parts: list[Said] = []
    for token_id in ids_of(text):
        parts.append(turn.push(token_id))
        if turn.stopped:
            break
    else:
        parts.append(turn.close())
    return Said(
        "".join(part.text for part in parts),
        "".join(part.thought for part in parts),
        tuple(call for part in parts for call in part.calls),
    )


LOOK = ToolCall("look", {"at": "a, b: {c}"})
CALL = '<|tool_call>call:look{at:<|"|>a, b: {c}<|"|>}<tool_call|>'
BAD = "<|tool_call>call:look{at<tool_call|>"


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ("just text", Said("just text")),
        ("<|channel>thought\nHm. So:\n\n<channel|>\n\nYes. ", Said("Yes. ", "Hm. So:")),
        ("<|channel>thought\n<channel|>Yes", Said("Yes")),
        ("<|channel>thought<channel|>Yes", Said("Yes")),
        ("<|channel>\n<channel|>Yes", Said("Yes")),
        ("<|channel>thorough<channel|>Yes", Said("Yes", "thorough")),
        ("<|channel>tho<channel|>Yes", Said("Yes", "tho")),
        ("<|channel><|channel>thought\nHm.<channel|>Yes", Said("Yes", "Hm.")),
        ("<channel|>Yes<tool_call|>", Said("Yes")),
        ("<|channel>thought\ncut off ", Said("", "cut off")),
        (CALL, Said(calls=(LOOK,))),
        (f"I look. {CALL}\n{CALL}<tool_call|>", Said("I look. ", calls=(LOOK, LOOK))),
        (f"<|channel>thought\nI look.{CALL}", Said("", "I look.", (LOOK,))),
        (f"{CALL}<|channel>thought\nAgain.<channel|>{CALL}", Said("", "Again.", (LOOK, LOOK))),
        (f"a {BAD}", Said(f"a {BAD}")),
        ("a <|tool_call>call:look{", Said("a <|tool_call>call:look{")),
        (f"<|tool_call>call:{CALL}", Said("<|tool_call>call:", calls=(LOOK,))),
        ('<|"|>a<|tool>b<|think|>', Said("ab")),
    ],
)
def test_a_turn_is_read_in_parts(turn: str, said: Said) -> None:
    assert read(stream(), turn) == said


def test_what_nobody_asked_for_is_text() -> None:
    """Without tools a call is shown as it is; without a chat, tags have no meaning."""
    assert read(stream(Reading()), f"a {CALL}") == Said(f"a {CALL}")
    assert read(stream(None), f"<|channel>thought\n{CALL}").calls == ()
    assert read(stream(None), "<|channel>thought\na<channel|>b") == Said("thought\nab")


def test_one_call_may_be_enough() -> None:
    assert read(stream(Reading(calls=True, only_one=True)), f"a{CALL}{CALL}") == Said(
        "a", calls=(LOOK,)
    )


def test_stop_strings_are_sought_in_the_content_alone() -> None:
    turn = "<|channel>thought\nno end<channel|>no end"
    assert read(stream(CALLS, "end"), turn) == Said("no ", "no end")
    assert read(stream(CALLS, "look"), CALL) == Said(calls=(LOOK,))
    assert read(stream(CALLS, "ab"), f"a{CALL}b") == Said("ab", calls=(LOOK,))
    assert read(stream(CALLS, "at"), BAD) == Said("<|tool_call>call:look{")
    assert read(stream(CALLS, "x", min_tokens=5), "<|channel>xx<channel|>xxx") == Said("x", "xx")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("<|turn>model\n", Said("a")),
        ("<|turn>model\n<|channel>thought\n", Said("", "a")),
        ("<|turn>model\n<|channel>", Said("", "a")),
        ("<|turn>model\n<|channel>thought\nb", Said("", "a")),
        ("<|turn>model\n<|channel>thought\n<channel|>", Said("a")),
        ("<|turn>model\n<|channel>thought\nb<turn|>\n<|turn>model\n", Said("a")),
    ],
)
def test_the_prompt_may_end_in_a_thought(prompt: str, said: Said) -> None:
    assert read(stream(prompt=prompt), "a") == said
    assert read(stream(prompt=prompt), "a<channel|>b").text.endswith("b")


@given(st.dictionaries(NAMES, JSON, max_size=3))
def test_what_is_written_can_be_read(arguments: dict[str, Any]) -> None:
    call = read_call(written_call(ToolCall("look", arguments)))
    assert call is not None
    assert call.name == "look"
    assert json.dumps(call.arguments, sort_keys=True) == json.dumps(arguments, sort_keys=True)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("call:f{}", {}),
        (" call: f { a : 1 , b:[ ] } ", {"a": 1, "b": []}),
        ('call:f{"a b":"c\\n"}', {"a b": "c\n"}),
        ("call:f{\ufdd2a:b\ufdd2:1}", {"a:b": 1}),
        ("call:f{unit:celsius,day:2026-01-02,x:NaN}",
         {"unit": "celsius", "day": "2026-01-02", "x": "NaN"}),
        ("call:f{a:\ufdd2\"{\ufdd2}", {"a": '"{'}),
        ("call:f{a:1,a:2}", {"a": 2}),
    ],
)  # fmt: skip
def test_calls_as_models_write_them(text: str, arguments: dict[str, Any]) -> None:
    assert read_call(text) == ToolCall("f", arguments)


@pytest.mark.parametrize("value", ["1e999", '"\\ud800"', "[-1e999]"])
def test_what_json_has_not_is_no_argument(value: str) -> None:
    assert read_call(f"call:f{{a:{value}}}") is None


@given(st.text(alphabet=["c", *"{}[],:\"'ab1 .-", QUOTE], max_size=30))
def test_nonsense_is_no_call_and_no_fault(text: str) -> None:
    for tried in (text, f"call:f{{{text}}}", "call:f{a:" + "[" * 2000 + text):
        found = read_call(tried)
        assert found is None or json.dumps(found.arguments, allow_nan=False)


PIECES = st.sampled_from(
    [*MARKERS, "thought\n", "thought", "call:look{", "}", "a:", "1", ",", "é", "\n", " ", "x"]
)
ENDS = ("<|turn>", "<turn|>", "<|tool_response>")


@given(st.lists(PIECES.filter(lambda piece: piece not in ENDS), max_size=25))
def test_a_stream_is_read_as_the_whole_turn_is(pieces: list[str]) -> None:
    turn = "".join(pieces)
    assert read(stream(), turn) == _read_at_once(turn)


def _read_at_once(turn: str) -> Said:
    """The same of the text in which tags are spelled, one part after another."""
    text, thought, calls = "", "", list[ToolCall]()
    trims = False

    def say(words: str) -> None:
        nonlocal text, trims
        for tag in MARKERS:
            words = words.replace(tag, "")
        shown = words.lstrip() if trims else words
        trims = trims and not shown
        text += shown

    rest = turn
    while found := re.search(r"<\|channel>|<\|tool_call>", rest):
        say(rest[: found.start()])
        is_thought, rest = found[0] == "<|channel>", rest[found.end() :]
        own = r"<channel\|>" if is_thought else r"<tool_call\|>"
        end = re.search(rf"{own}|<\|channel>|<\|tool_call>", rest)
        inner, closer = (rest, "") if end is None else (rest[: end.start()], end[0])
        rest = rest[len(inner) + (len(closer) if closer.endswith("|>") else 0) :]
        for tag in MARKERS if is_thought else [tag for tag in MARKERS if tag != '<|"|>']:
            inner = inner.replace(tag, "")
        if is_thought:
            named = inner.removeprefix("thought\n")
            thought += "" if inner == "thought" else named.rstrip()
            trims = True
            continue
        whole = closer == "<tool_call|>"
        call = read_call(inner.replace('<|"|>', QUOTE)) if whole else None
        if call is None:
            text += f"<|tool_call>{inner}{closer if whole else ''}"
        else:
            calls.append(call)
            trims = True
    say(rest)
    return Said(text, thought, tuple(calls))
