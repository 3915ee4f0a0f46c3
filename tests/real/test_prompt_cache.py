"""What is not read again changes no answer: the same tokens and the same logprobs, to the bit."""

from dataclasses import replace

import numpy as np
import pytest

from gemma_server.engine.request import Finished, Handle, Request, SamplingParams, Token
from gemma_server.errors import ModelLoadError
from testing.counts import is_long
from testing.real import RealModel, load_real_model

pytestmark = pytest.mark.real_model

STEPS = 12
WAYS = [
    SamplingParams(),
    SamplingParams(temperature=0.8, top_k=40, top_p=0.95, seed=4, repetition_penalty=1.1),
]
if is_long():
    WAYS.append(SamplingParams(temperature=1.0, seed=3))


def ids_of(seed: int, length: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(1000, 200_000, length).tolist())


def request_for(ids: tuple[int, ...], how: SamplingParams) -> Request:
    """The salt keeps those of other tests apart."""
    return Request(ids, STEPS, how, top_logprobs=2, cache_salt=str(how))


def read(handle: Handle) -> list[Token]:
    tokens = []
    while isinstance(event := handle.next_event(120), Token):
        tokens.append(event)
    assert event == Finished("length", STEPS)
    return tokens


def cold(real: RealModel, request: Request) -> list[Token]:
    """The answer of a model that reads everything."""
    [handle] = real.engine.submit([replace(request, cache_prompt=False)])
    tokens = read(handle)
    assert handle.cached_tokens == 0
    return tokens


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_a_conversation_reads_each_turn_once(real: RealModel, how: SamplingParams) -> None:
    ids, cached = ids_of(0, 50), 0
    for turn in range(3):
        request = request_for(ids, how)
        [handle] = real.engine.submit([request])
        answer = read(handle)
        assert handle.cached_tokens == cached
        assert answer == cold(real, request)
        ids += tuple(token.id for token in answer)
        cached = len(ids) - 1  # the last token was never fed
        ids += ids_of(turn + 1, 7 + 30 * turn)


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_prompts_with_one_beginning_share_it(real: RealModel, how: SamplingParams) -> None:
    """At once, from a slot that is free, and from one that is at work."""
    beginning = ids_of(10, 100)
    requests = [request_for(beginning + ids_of(20 + n, 3 + 40 * n), how) for n in range(3)]
    expected = [cold(real, request) for request in requests]
    handles = real.engine.submit(requests)
    assert [read(handle) for handle in handles] == expected
    assert [handle.cached_tokens for handle in handles] == [0, 100, 100]
    long = replace(requests[0], max_new_tokens=60)
    [busy] = real.engine.submit([long])
    busy.next_event(60)
    for request, answer in zip(requests, expected, strict=True):
        [handle] = real.engine.submit([request])
        assert read(handle) == answer
        assert handle.cached_tokens >= 100
    real.engine.cancel(busy)


def test_several_answers_to_one_prompt_read_it_once(real: RealModel) -> None:
    ids = ids_of(30, 100)
    requests = [
        replace(request_for(ids, replace(WAYS[1], seed=seed)), cache_salt="n") for seed in range(4)
    ]
    handles = real.engine.submit(requests)
    answers = [read(handle) for handle in handles]
    assert [handle.cached_tokens for handle in handles] == [0, 99, 99, 99]
    assert answers == [cold(real, request) for request in requests]


def test_too_little_memory_for_one_text_is_refused() -> None:
    with pytest.raises(ModelLoadError, match=r"--prompt-cache-bytes 1000: .* up to 37748736 bytes"):
        load_real_model(prompt_cache_bytes=1000)


def test_a_salt_parts_what_is_shared(real: RealModel) -> None:
    request = request_for(ids_of(40, 64), WAYS[0])
    salted = [replace(request, cache_salt=salt) for salt in ("", "a", "b", "a")]
    found = []
    for each in salted:
        [handle] = real.engine.submit([each])
        read(handle)
        found.append(handle.cached_tokens)
    assert found == [0, 0, 0, 63]
