"""Logprobs of prompt and answer against the oracle, for every family and across chunk borders."""

import re
from typing import Any

import numpy as np
import pytest

from gemma_server.engine.engine import Engine
from gemma_server.engine.request import Handle, Logprobs, PromptLogprobs, Request, Token
from gemma_server.engine.scheduler import Limits, Scheduler
from gemma_server.executor.compile_cache import CompileCache
from gemma_server.executor.programs import Programs
from gemma_server.executor.runner import JaxRunner
from gemma_server.private_directory import PrivateDirectory
from testing.counts import families
from testing.oracle import gemma as oracle
from testing.tiny import tiny_config, tiny_params, tiny_weights

pytestmark = pytest.mark.slow

TOLERANCE = 1e-3
CHUNK, PROMPT = 32, 45


@pytest.fixture(scope="module", params=families())
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A preset's name, weights, engine and programs: one that reads a chunk, one that decodes."""
    name: str = request.param
    path = tmp_path_factory.mktemp(name)
    fixed: dict[str, Any] = {"context_length": 256, "dtype": np.dtype("float32")}
    programs = Programs(tiny_config(name), slots=1, chunks=(CHUNK,), **fixed)
    programs.compile(
        lambda share: None, CompileCache(PrivateDirectory(path), programs.configuration)
    )
    runner = JaxRunner(programs, tiny_params(name))
    engine = Engine(runner, Scheduler(Limits(1, 256, (CHUNK,), 9, 10_000)), lambda error: None)
    engine.start()
    yield name, tiny_weights(name), engine, programs
    engine.stop()


def read(handle: Handle) -> tuple[list[Logprobs], list[Token]]:
    scores: list[Logprobs] = []
    tokens: list[Token] = []
    while isinstance(event := handle.next_event(60), PromptLogprobs | Token):
        if isinstance(event, Token):
            tokens.append(event)
        else:
            assert not tokens
            scores += event.scores
    return scores, tokens


def check(found: Logprobs, token: int, expected: Any, top: int) -> None:
    """Expected are the oracle's logits [V] there."""
    logprobs = expected - np.logaddexp.reduce(expected)
    assert found.logprob == pytest.approx(logprobs[token], abs=TOLERANCE)
    ids, values = [pair[0] for pair in found.top], [pair[1] for pair in found.top]
    assert len(set(ids)) == top
    np.testing.assert_allclose(values, np.sort(logprobs)[::-1][:top], atol=TOLERANCE)
    np.testing.assert_allclose(values, logprobs[ids], atol=TOLERANCE)


def test_logprobs_are_the_oracle_s(case: Any) -> None:
    name, weights, engine, _ = case
    ids = np.random.default_rng(5).integers(0, tiny_config(name).vocab, PROMPT).tolist()
    [handle] = engine.submit([Request(tuple(ids), 5, top_logprobs=7, prompt_logprobs=True)])
    scores, tokens = read(handle)
    text = ids + [token.id for token in tokens]
    expected = oracle.logits(oracle.PRESETS[name], weights, text)
    assert (len(scores), len(tokens)) == (PROMPT - 1, 5)
    found = scores + [token.logprobs for token in tokens if token.logprobs is not None]
    for score, token, logits in zip(found, text[1:], expected[:-1], strict=True):
        check(score, token, logits, 7)


def test_the_logits_of_a_whole_chunk_are_never_there_at_once(case: Any) -> None:
    from gemma_server.executor.variants import EVERYTHING

    name, _, _, programs = case
    vocab = tiny_config(name).vocab
    text = programs._compiled["prefill", 32, str(EVERYTHING)].as_text()
    assert re.search(rf"\[8,{vocab}\]", text)
    assert not re.search(rf"\[(32|1,32),{vocab}\]|\[4,8,{vocab}\]|\[{vocab},32\]", text)
