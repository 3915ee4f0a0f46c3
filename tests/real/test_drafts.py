"""Drafts change no answer: the same tokens and the same logprobs as without, to the bit."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gemma_server.engine.draft_model import DraftModel
from gemma_server.engine.request import Finished, Handle, Request, SamplingParams, Token
from gemma_server.text import grammar
from testing.real import RealModel, load_real_model

pytestmark = pytest.mark.real_model

COUNTING = "one two three four five six seven eight nine ten\n" * 3
CODE = """def add(a, b):
    \"\"\"Add two numbers.\"\"\"
    result = a + b
    return result

def sub(a, b):
    \"\"\"Subtract two numbers.\"\"\"
"""
OPEN = "My favourite recipe, which is my favourite because it is my favourite, is"
WAYS = {
    "greedy": SamplingParams(),
    "at temperature 1": SamplingParams(temperature=1.0, seed=5),
    "penalized": SamplingParams(
        temperature=0.5, seed=7, repetition_penalty=1.2, bias=((236761, -3),)
    ),
}


@pytest.fixture(scope="module")
def plain() -> Iterator[RealModel]:
    model = load_real_model(max_draft=0)
    yield model
    model.engine.stop()


@pytest.fixture(scope="module")
def asking(checkpoint: Path) -> Iterator[RealModel]:
    """A model that is its own draft model, as if that took no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DraftModel, "token_s", lambda model, rows: 0.0)
        model = load_real_model(draft_checkpoint=checkpoint)
        yield model
        model.engine.stop()


def read(handle: Handle) -> tuple[list[Token], Finished]:
    tokens = []
    while isinstance(event := handle.next_event(120), Token):
        tokens.append(event)
    assert isinstance(event, Finished)
    return tokens, event


@pytest.mark.parametrize("way", WAYS)
def test_answers_are_those_without_drafts(real: RealModel, plain: RealModel, way: str) -> None:
    """One alone, then several beside each other, of which some have stop tokens or few tokens."""
    tokenizer, how = real.tokenizer, WAYS[way]
    requests = [
        Request(tuple(tokenizer.encode(text)), steps, how, stops, least, logprobs)
        for text, steps, stops, least, logprobs in (
            (COUNTING, 40, frozenset[int](), 0, 3),
            (CODE, 30, tokenizer.stop_ids, 5, None),
            (OPEN, 21, tokenizer.stop_ids, 0, 0),
        )
    ]
    expected = [read(handle) for handle in plain.engine.submit(requests)]
    alone = [real.engine.submit([request])[0] for request in requests[:1]]
    assert [read(handle) for handle in alone] == expected[:1]
    assert way != "greedy" or alone[0].accepted_tokens > 0
    assert alone[0].draft_tokens >= alone[0].accepted_tokens
    assert [read(handle) for handle in real.engine.submit(requests)] == expected


@pytest.mark.parametrize("way", WAYS)
def test_answers_are_those_without_a_draft_model(
    asking: RealModel, plain: RealModel, way: str
) -> None:
    """It draws with the request's own seed and options, so that most of its tokens come true."""
    tokenizer, how = plain.tokenizer, WAYS[way]
    requests = [
        Request(tuple(tokenizer.encode(text)), steps, how, tokenizer.stop_ids, 0, logprobs)
        for text, steps, logprobs in ((OPEN, 40, 2), ("Once upon a time", 25, None))
    ]
    expected = [read(handle) for handle in plain.engine.submit(requests)]
    alone = asking.engine.submit(requests[:1])
    assert [read(handle) for handle in alone] == expected[:1]
    assert alone[0].accepted_tokens > 0.9 * alone[0].draft_tokens > 10
    assert [read(handle) for handle in asking.engine.submit(requests)] == expected


def test_what_a_grammar_forces_is_not_sampled_alone(real: RealModel, plain: RealModel) -> None:
    forced = grammar.of_regex(
        "(the quick brown fox jumps over the lazy dog, says [a-z]{3,5}[.] ){2}"
    )
    found = []
    for model in (real, plain):
        start = model.loaded.grammars.start(forced)
        ids = tuple(model.tokenizer.encode("Say:"))
        request = Request(ids, 60, WAYS["at temperature 1"], model.tokenizer.stop_ids)
        [handle] = model.engine.submit([replace(request, constraint=start)])
        found.append((*read(handle), handle.accepted_tokens))
    assert found[0][:2] == found[1][:2]
    assert found[0][2] > 0 == found[1][2]
